"""Report of a benchmark: distributions of latencies, tables, JSON, facts about the machine, and progress."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import re
import resource
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from ...settings import SettingsError
from ...terminal.exits import CommandError


def check_json_file(file: str | None) -> None:
    """Checks the value of `--json` before the benchmark runs.

    Raises:
      SettingsError: The folder of the file does not exist.
    """
    if file not in (None, "-") and (Path(file).is_dir() or not Path(file).resolve().parent.is_dir()):
        raise SettingsError(f"--json {file}: give a file in a folder that exists")


def write_report(tables: Group, document: Mapping[str, Any], file: str | None) -> None:
    """Prints tables, and writes the document as JSON.

    Args:
      file: File of the document, or "-" for stdout, which moves the tables to stderr; None writes no document.

    Raises:
      CommandError: The file cannot be written.
    """
    Console(stderr=file == "-").print(tables)
    text = orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    if file == "-":
        sys.stdout.write(text.decode())
    elif file is not None:
        try:
            Path(file).write_bytes(text)
        except OSError as error:
            raise CommandError(f"--json {file}: {error.strerror}") from None


def opening(benchmark: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the facts that a document begins with. Call it before the benchmark runs."""
    return {
        "benchmark": benchmark,
        "started": now(),
        "versions": versions(),
        "machine": machine(),
        "options": options,
    }


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str]], corner: str = "") -> Table:
    """Returns a table whose rows have a name and numbers."""
    table = Table(show_header=any(columns))
    table.add_column(corner)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def titled(title: str, tables: Sequence[Table], notes: Sequence[str] = ()) -> Group:
    """Returns tables with a title and notes, neither of which is parsed for markup."""
    return Group(Text(title), *tables, *(Text(note) for note in notes))


def interruption(was_interrupted: bool) -> Sequence[str]:
    """Returns the note about an interruption, if there was one."""
    return ["interrupted: these are the measurements so far"] if was_interrupted else []


def shown_rate(value: float | None) -> str:
    """Formats a rate per second."""
    return number(value, 0 if value is not None and value >= 1000 else 1)


def number(value: float | int | None, digits: int = 1) -> str:
    """Formats a number with separators; None is a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"


def milliseconds(value: float | int | None) -> str:
    """Formats milliseconds with the digits that are significant."""
    if value is None:
        return "–"
    return number(value, 0 if value >= 1000 else 1 if value >= 10 else 2)


def pick(result: Mapping[str, Any], *path: str) -> Any:
    """Returns the value at a path of names; None if a part of the path is None."""
    value: Any = result
    for name in path:
        value = None if value is None else value[name]
    return value


type Advance = Callable[[int], object]
"""Advances the bar by a number of steps."""


@contextlib.contextmanager
def progress_bar(description: str, total: int) -> Iterator[Advance]:
    """Shows a bar on a terminal during the `with` block. It is drawn seldom, since that disturbs the measurement."""
    with tqdm(desc=description, total=total, mininterval=0.25, leave=False, disable=None) as bar:
        yield bar.update


_PACKAGES: Final = ("roost", "jax", "jaxlib", "numpy", "flax")


def machine() -> Mapping[str, Any]:
    """Returns facts about this machine, and its load average."""
    return {
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "load_average": os.getloadavg()[0],
    }


def versions() -> Mapping[str, str]:
    """Returns the versions of Python and of installed packages."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def now() -> str:
    """Returns the time of day in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def resident_bytes() -> int:
    """Returns the bytes of this process in RAM, or their peak if the system does not report the current number."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file() and (found := re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE)):
        return found[1]
    return platform.processor() or platform.machine()


@dataclass(slots=True)
class RequestTrace:
    """Times of one request, in seconds of one clock, as a client or the driver of an engine sees them.

    Attributes:
      sent_s: Time when the request was sent; connecting comes after.
      token_times_s: Time of each piece of the response, which may hold one token or several.
      end_s: Time when the response was complete, or had failed.
      prompt_tokens, output_tokens: Numbers of tokens as the server counts them; None if it does not report them.
      last_s: Time when the last token was reported, if that is after the last piece: the token may have no text.
      failure: Reason why the response is not complete, worded so that equal failures can be counted; None if it is.
      lag_s: Seconds by which the client sent the request later than planned.
    """

    sent_s: float
    token_times_s: list[float] = field(default_factory=list)
    end_s: float = 0.0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    last_s: float | None = None
    failure: str | None = None
    lag_s: float = 0.0

    @property
    def ttft_s(self) -> float | None:
        """Time to first token."""
        return self.token_times_s[0] - self.sent_s if self.token_times_s else None

    @property
    def gaps_s(self) -> Sequence[float]:
        """Inter-token latencies: times from one piece to the next."""
        return [after - before for before, after in pairwise(self.token_times_s)]

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; unlike the gaps it counts every token of a piece."""
        if not self.token_times_s or self.output_tokens is None or self.output_tokens < 2:
            return None
        last_s = self.token_times_s[-1] if self.last_s is None else self.last_s
        return (last_s - self.token_times_s[0]) / (self.output_tokens - 1)

    @property
    def e2e_s(self) -> float:
        """Time from sending to the end."""
        return self.end_s - self.sent_s


def latencies_ms(traces: Iterable[RequestTrace]) -> dict[str, Any]:
    """Returns distributions over requests, or over gaps for `itl_ms`, in milliseconds."""
    traces = list(traces)
    return {
        "ttft_ms": in_ms(_known(traces, lambda trace: trace.ttft_s)),
        "tpot_ms": in_ms(_known(traces, lambda trace: trace.tpot_s)),
        "itl_ms": in_ms(gap for trace in traces for gap in trace.gaps_s),
        "e2e_ms": in_ms(trace.e2e_s for trace in traces),
    }


def _known(traces: Iterable[RequestTrace], time: Callable[[RequestTrace], float | None]) -> list[float]:
    return [seconds for trace in traces if (seconds := time(trace)) is not None]


def percentile(values: Sequence[float], percent: int) -> float:
    """Returns a percentile of at least one value."""
    return float(np.percentile(values, percent))


def in_ms(seconds: Iterable[float]) -> dict[str, Any] | None:
    """Returns the distribution of times in milliseconds, from times in seconds; None if the list is empty."""
    times = [1e3 * value for value in seconds]
    if not times:
        return None
    percentiles = {f"p{percent}": percentile(times, percent) for percent in (50, 90, 95, 99)}
    return {"count": len(times), "mean": statistics.fmean(times), "min": min(times), **percentiles, "max": max(times)}


def median_of(results: Sequence[Any]) -> Any:
    """Returns the median of each number over results of the same form. Results that are None are skipped."""
    given = [result for result in results if result is not None]
    if not given:
        return None
    if isinstance(given[0], Mapping):
        return {name: median_of([result[name] for result in given]) for name in given[0]}
    return statistics.median(given)


_TIMES: Final = ("ttft", "tpot", "itl", "e2e")


type Objective = Mapping[str, float]
"""Maximum latencies of a request in milliseconds, by name.

`ttft` and `e2e` are defined in `RequestTrace`; `tpot` is the mean time per token after the first, and `itl` the 99th
percentile of the request's inter-token latencies.
"""


def parse_objective(option: str, words: Sequence[str]) -> Objective:
    """Parses words such as `ttft:500 itl:50`.

    Raises:
      SettingsError: The text is not such a list.
    """
    return dict(_parse_limit(option, word) for text in words for word in text.replace(",", " ").split())


def meets(trace: RequestTrace, objective: Objective) -> bool:
    """Returns whether a request succeeded within every limit. An unknown time counts as within its limit."""
    itl_s = percentile(trace.gaps_s, 99) if trace.gaps_s else None
    times = {"ttft": trace.ttft_s, "tpot": trace.tpot_s, "itl": itl_s, "e2e": trace.e2e_s}
    is_within = all((times[name] or 0.0) * 1e3 <= limit for name, limit in objective.items())
    return trace.failure is None and is_within


def _parse_limit(option: str, word: str) -> tuple[str, float]:
    name, _, number = word.partition(":")
    name = "e2e" if name == "e2el" else name
    try:
        limit = float(number)
    except ValueError:
        limit = 0.0
    if name not in _TIMES or not 0 < limit < float("inf"):
        raise SettingsError(f"{option} {word!r}: give limits in ms such as ttft:500; names are {', '.join(_TIMES)}")
    return name, limit
