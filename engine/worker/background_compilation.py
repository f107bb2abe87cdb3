"""Compilation while the engine runs: of programs that it begins without. Others are bugs, and are counted."""

import atexit
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import jax.monitoring

from ..types.host_memory import release_freed_memory
from .compilation import CompiledProgram, compile_beside_all
from .lowering import lower
from .served import Program, Served
from .trace_cache import TraceCache

_logger = logging.getLogger(__name__)

_COMPILE_EVENT: Final = "/jax/core/compile/backend_compile_duration"


class CompileCounter:
    """Counts XLA compilations of this process from `start` to `stop`.

    Attributes:
      count: Number of compilations so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._excluded: set[int] = set()

    @contextmanager
    def excluding(self) -> Iterator[None]:
        """Leaves out the compilations of the calling thread within the `with` block."""
        thread = threading.get_ident()
        self._excluded.add(thread)
        try:
            yield
        finally:
            self._excluded.remove(thread)

    def start(self) -> None:
        """Starts counting."""
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def stop(self) -> None:
        """Stops counting."""
        jax.monitoring.unregister_event_duration_listener(self._on_event)

    def _on_event(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _COMPILE_EVENT and threading.get_ident() not in self._excluded:
            self.count += 1


class BackgroundCompiler:
    """Compiles the programs that an engine begins without, one after the other, on a separate thread.

    A compilation cannot be interrupted. The interpreter's shutdown waits for it; `os._exit` does not.

    Args:
      served: The model, and which of its programs are compiled later.
      traces: Traced programs of earlier starts, if they are kept.
    """

    def __init__(self, served: Served, traces: TraceCache | None = None) -> None:
        self._served = served
        self._traces = traces
        self._is_stopped = False
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        """Whether a program is being compiled."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, add: Callable[[Program[Any], CompiledProgram], None], counter: CompileCounter) -> None:
        """Starts the thread, unless there is nothing to compile.

        Args:
          add: Called on the thread with each program and its compiled form.
          counter: Counter that leaves these compilations out.
        """
        if not self._served.programs.later:
            return
        self._thread = threading.Thread(target=self._run, args=(add, counter), name="compile", daemon=True)
        atexit.register(self.stop_and_wait)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the program that is being compiled, without waiting for it."""
        self._is_stopped = True

    def wait(self) -> None:
        """Waits until every program is compiled, or the thread has been stopped."""
        if self._thread is not None:
            self._thread.join()

    def stop_and_wait(self) -> None:
        """Ends the thread, and waits for the program that is being compiled."""
        self.stop()
        self.wait()

    def _run(self, add: Callable[[Program[Any], CompiledProgram], None], counter: CompileCounter) -> None:
        start, programs = time.monotonic(), self._served.programs.later
        _logger.info("drafts: compiling %d programs while the engine runs", len(programs))
        try:
            for program in programs:
                if self._is_stopped:
                    return
                with counter.excluding():
                    compiled = compile_beside_all(self._served, lower(program, self._served, self._traces))
                add(program, compiled)
            _logger.info("drafts: compiled %d programs in %.1f s", len(programs), time.monotonic() - start)
        except Exception:
            _logger.exception("a program did not compile; the engine goes on without it and later ones")
        finally:
            atexit.unregister(self.stop_and_wait)
            release_freed_memory()
