"""Seconds, compiled programs and loaded engines of each test file, printed at the end of a run.

Each process counts them and attaches them to its tests' reports; the process that the reports reach adds them up.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Generator
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Final

import pytest

_PROGRAM: Final = "/jax/core/compile/backend_compile_duration"
_TRACED: Final = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")
_HIT: Final = "/jax/compilation_cache/cache_hits"


@dataclass
class Usage:
    """What tests used; of a process so far, of one phase of a test, or of a file.

    Attributes:
      seconds: Duration of the tests and of their fixtures.
      busy: Seconds of processors that this process and its children took, which a busy machine hardly changes.
      traced: Seconds in which JAX traced and lowered functions.
      compiled: Seconds in which XLA compiled programs, or read them from the cache.
      programs: Number of programs.
      cached: Number of those that were in the cache.
      engines: Number of engines with a model that were loaded.
    """

    seconds: float = 0.0
    busy: float = 0.0
    traced: float = 0.0
    compiled: float = 0.0
    programs: int = 0
    cached: int = 0
    engines: int = 0

    def add(self, other: "Usage", sign: int = 1) -> "Usage":
        return Usage(*(a + sign * b for a, b in zip(astuple(self), astuple(other), strict=True)))


def busy_seconds() -> float:
    """Returns the seconds of processors that this process took, and its children, which run on Linux or have ended.

    A process that has ended is counted by its parent once that has waited for it.
    """
    ticks = 0
    with suppress(FileNotFoundError):
        running = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for process in running:
            with suppress(FileNotFoundError, ProcessLookupError):
                fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, fields[11:15]))
    return sum(os.times()[:4]) + ticks / os.sysconf("SC_CLK_TCK")


class SecondsByFile:
    """Plugin of pytest."""

    def __init__(self, listed: int) -> None:
        self._listed = listed
        self._so_far, self._before = Usage(), Usage()
        self._files: dict[str, Usage] = defaultdict(Usage)
        self._listens = False

    def pytest_collection_finish(self) -> None:
        """Begins to count; of JAX, if the tests have imported it."""
        self._before.busy = busy_seconds()
        if "jax" not in sys.modules or self._listens:
            return
        import jax

        self._listens = True
        jax.monitoring.register_event_duration_secs_listener(self._add_seconds)
        jax.monitoring.register_event_listener(self._add_event)
        if runner := sys.modules.get("roost.engine.worker.runner"):
            self._count_engines(runner.ModelRunner)

    def _add_seconds(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == _PROGRAM:
            self._so_far.programs += 1
            self._so_far.compiled += duration_secs
        elif event in _TRACED:
            self._so_far.traced += duration_secs

    def _add_event(self, event: str, **_: Any) -> None:
        self._so_far.cached += event == _HIT

    def _count_engines(self, runner: Any) -> None:
        initialize = runner.__init__

        @wraps(initialize)
        def counted(*args: Any, **kwargs: Any) -> None:
            self._so_far.engines += 1
            initialize(*args, **kwargs)

        runner.__init__ = counted

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        self._so_far.busy = busy_seconds()
        used = self._so_far.add(self._before, -1)
        used.seconds = report.duration
        self._before = self._so_far.add(Usage())
        report.__dict__["used"] = astuple(used)  # what else is there is sent as well
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        path = report.nodeid.partition("::")[0]
        self._files[path] = self._files[path].add(Usage(*getattr(report, "used", ())))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        files = sorted(self._files.items(), key=lambda item: -item[1].seconds)
        if not files or self._listed == 0:
            return
        total = Usage()
        for _, used in files:
            total = total.add(used)
        terminalreporter.section(f"seconds of {len(files)} files, of which {min(self._listed, len(files))} are listed")
        terminalreporter.write_line("seconds    busy  traced compiled programs  cached engines")
        for path, used in (("all files", total), *files[: self._listed]):
            terminalreporter.write_line(
                f"{used.seconds:7.1f} {used.busy:7.1f} {used.traced:7.1f} {used.compiled:8.1f} {used.programs:8} "
                f"{used.cached:7} {used.engines:7}  {path}"
            )
