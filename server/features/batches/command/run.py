"""Runs `roost batch`: sends a limited number of lines at a time, again while servers are busy or unreachable."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import orjson
from rich.console import Console
from rich.progress import Progress

from ....client import Response, server_addresses
from ....settings import SettingsError, load_settings
from ....terminal.exits import FAILURE_STATUS, INTERRUPTED_STATUS, CommandError, Signals
from ....terminal.text import print_status
from ..batch_lines import BatchLine, LineError, LineResult, error_result, line_id, response_result
from .backends import BatchBackend, NoResponseError, ServerBatch
from .line_files import InputFile, OutputFile, open_input, open_output
from .options import BatchOptions

_CONCURRENCY: Final = 64
"""Default number of lines that each server works on at the same time. Servers refuse lines if they have no room."""

_BUSY: Final = frozenset({429, 502, 503})
"""Statuses after which a line is sent again: the queue is full, or the server is starting, draining or unreachable."""

_FIRST_PAUSE_S: Final = 0.25

_LONGEST_PAUSE_S: Final = 30.0
"""Bounds of the pause before a line is sent again, which doubles each time."""

_GIVE_UP_S: Final = 600.0
"""Seconds without a response from any server after which a batch ends."""

_TICK_S: Final = 0.1
"""Seconds between two looks for a signal while a line waits to be sent again."""

_DRAW_S: Final = 0.25
"""Minimum seconds between two drawings of the bar."""

_LINE_S: Final = 10.0
"""Seconds between two lines, if stderr is not a terminal."""


def batch(options: BatchOptions) -> int:
    """Runs all lines that have no response in the output yet.

    Returns:
      The exit status, which is 1 if every line of this run ended with an error.

    Raises:
      SettingsError: An option cannot be used.
      CommandError: A file cannot be used, or the servers stopped responding.
      RoostError: The model cannot be loaded.
    """
    signals, status = Signals(), 0
    signals.install()
    with open_input(options.input) as source:
        source.check_requests()
        with open_output(options.output, source.index) as output:
            num_done = int(output.is_done.sum())
            if num_done:
                print_status(f"{options.output} has {num_done:,} of {len(source.index):,} lines already")
            if num_done < len(source.index):
                counts = asyncio.run(_run(_backend(options, signals), source, output, signals))
                status = FAILURE_STATUS if 0 < counts.num_lines == counts.num_failed else 0
            output.save()
            num_left = int((~output.is_done).sum())
            if num_left:
                print_status(f"interrupted with {num_left:,} lines left; run the same command again to continue")
                return INTERRUPTED_STATUS
            if options.sort:
                output.sort()
    return status


def _backend(options: BatchOptions, signals: Signals) -> BatchBackend:
    """Imports and opens a backend. The client of servers does not import JAX, which takes seconds."""
    if options.url is None:
        if options.concurrency is not None:
            raise SettingsError("--concurrency is for servers: give --url, or --slots for a model that is loaded here")
        from .local_backend import LocalBatch

        given = {**options.settings, "model": options.model, "itl_target_ms": 0, "request_timeout": "off"}
        return LocalBatch(load_settings(given), lambda: signals.first is not None)
    settings = {**options.settings, "model": options.model}
    addresses = server_addresses(options.url.split(","), options.api_key, settings)
    return ServerBatch(addresses, options.api_key, options.concurrency or _CONCURRENCY)


@dataclass(slots=True)
class Counts:
    """Totals of a run so far.

    Attributes:
      num_lines: Number of lines that have ended.
      num_failed: Number of these lines that ended with an error.
      prompt_tokens: Total prompt tokens.
      generated_tokens: Total generated tokens.
    """

    num_lines: int = 0
    num_failed: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0

    def add(self, result: LineResult) -> None:
        """Counts the result of a line."""
        self.num_lines += 1
        self.num_failed += result.is_failed
        self.prompt_tokens += result.usage.input
        self.generated_tokens += result.usage.output


class BatchProgress:
    """Shows lines, tokens per second and the time left.

    Attributes:
      bar: Bar of a terminal, which is shown during its `with` block.

    Args:
      total: Number of lines of the input.
      num_done: Number of lines that earlier runs have finished.
    """

    def __init__(self, total: int, num_done: int) -> None:
        self._total = total
        self._num_done = num_done
        self._began = self._shown_at = time.monotonic()
        console = Console(stderr=True)
        self.bar = Progress(console=console, auto_refresh=False, transient=True, disable=not console.is_terminal)
        self._task = self.bar.add_task("batch", total=total, completed=num_done)

    def show(self, counts: Counts) -> None:
        """Shows the progress, at most once per interval."""
        now = time.monotonic()
        if now - self._shown_at < (_LINE_S if self.bar.disable else _DRAW_S):
            return
        self._shown_at = now
        done = self._num_done + counts.num_lines
        text = f"{done:,} of {self._total:,} lines, {self._speed(counts):,.0f} tokens per second"
        if self.bar.disable:
            print_status(text)
        else:
            self.bar.update(self._task, completed=done, description=text, refresh=True)

    def summary(self, counts: Counts) -> str:
        """Returns a line about a run that has ended."""
        failed = f", {counts.num_failed:,} of them with errors" if counts.num_failed else ""
        tokens = f"{counts.prompt_tokens:,} prompt tokens and {counts.generated_tokens:,} generated"
        return f"{counts.num_lines:,} lines{failed}; {tokens}, {self._speed(counts):,.0f} per second"

    def _speed(self, counts: Counts) -> float:
        return counts.generated_tokens / max(time.monotonic() - self._began, 1e-3)


async def _run(backend: BatchBackend, source: InputFile, output: OutputFile, signals: Signals) -> Counts:
    try:
        await backend.start()
        progress = BatchProgress(len(source.index), int(output.is_done.sum()))
        run = BatchRun(backend, source, output, lambda: signals.first is not None, progress.show)
        with progress.bar:
            await run.run()
        print_status(progress.summary(run.counts))
        return run.counts
    finally:
        await backend.close()


class BatchRun:
    """One run over the unfinished lines.

    Attributes:
      counts: Totals of the run so far.

    Args:
      backend: BatchBackend that has started.
      source: File of the requests.
      output: File to which the output line of each request is written.
      is_stopping: Returns whether no more lines should be sent.
      on_end: Called after each line that has ended.
      give_up_s: Seconds without any response after which the run ends.
    """

    def __init__(
        self,
        backend: BatchBackend,
        source: InputFile,
        output: OutputFile,
        is_stopping: Callable[[], bool],
        on_end: Callable[[Counts], None],
        give_up_s: float = _GIVE_UP_S,
    ) -> None:
        self.counts = Counts()
        self._backend = backend
        self._source = source
        self._lines = source.lines(output.is_done)
        self._output = output
        self._is_stopping = is_stopping
        self._on_end = on_end
        self._give_up_s = give_up_s
        self._num_open = 0
        self._heard_at = 0.0

    async def run(self) -> None:
        """Sends all lines, and returns when they have ended. Once `is_stopping`, only lines already sent are awaited.

        Raises:
          CommandError: The servers stopped responding, or the output cannot be written.
        """
        self._heard_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._backend.concurrency):
                    group.create_task(self._send_lines())
        except* CommandError as errors:
            raise errors.exceptions[0] from None

    async def _send_lines(self) -> None:
        """Sends one line after another from the lines that it shares with other tasks."""
        while not self._is_stopping() and (entry := next(self._lines, None)) is not None:
            place, line = entry
            id = line_id(self._source.number(place))
            if isinstance(line, LineError):
                text = f"line {self._source.number(place)}: {line}"
                self._end(place, error_result(id, line.custom_id, "invalid_line", text))
            elif (response := await self._response(line)) is not None:
                request_id = response.headers.get(b"x-request-id", b"").decode("latin-1")
                found = line.custom_id, response.status, request_id, response.body
                self._end(place, response_result(id, *found, orjson.loads))

    async def _response(self, line: BatchLine) -> Response | None:
        """Returns the response to a line, which is sent again while servers are busy or unreachable; None if it was
        stopped.

        Raises:
          CommandError: No line got any response for too long.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            wait_s = random.uniform(0.5, 1.0) * pause_s
            try:
                response = await self._send(line)
                if response.status not in _BUSY:
                    return response
                wait_s = _retry_after_s(response, wait_s)
            except NoResponseError as error:
                self._check_hope(error)
            if not await self._pause(wait_s):
                return None
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _send(self, line: BatchLine) -> Response:
        self._num_open += 1
        try:
            response = await self._backend.send(line)
        finally:
            self._num_open -= 1
        self._heard_at = asyncio.get_running_loop().time()
        return response

    def _check_hope(self, error: NoResponseError) -> None:
        """Ends the run if no server responds and none works on a line. A line may take longer than any limit."""
        if not self._num_open and asyncio.get_running_loop().time() - self._heard_at > self._give_up_s:
            raise CommandError(f"no response for {self._give_up_s:g} s ({error}); run the same command to continue")

    async def _pause(self, seconds: float) -> bool:
        """Waits, unless the run is stopped; returns False if it is stopped."""
        now = asyncio.get_running_loop().time
        end = now() + min(seconds, _LONGEST_PAUSE_S)
        while not self._is_stopping():
            if (left := end - now()) <= 0:
                return True
            await asyncio.sleep(min(left, _TICK_S))
        return False

    def _end(self, place: int, result: LineResult) -> None:
        self._output.append(place, result.line)
        self.counts.add(result)
        self._on_end(self.counts)


def _retry_after_s(response: Response, default_s: float) -> float:
    """Returns the seconds to wait according to a response, or the default if it has none, or a date."""
    try:
        return float(response.headers[b"retry-after"])
    except (KeyError, ValueError):
        return default_s
