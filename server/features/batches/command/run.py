"""Runs `roost batch`: sends a limited number of lines at a time, again while servers are busy or unreachable."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import orjson
from rich.console import Console
from rich.progress import Progress

from ....client import Response, server_addresses
from ....settings import SettingsError, load_settings
from ....terminal.exits import FAILURE_STATUS, INTERRUPTED_STATUS, CommandError, Signals
from ....terminal.text import print_status
from ..batch_lines import BatchLine, LineError, LineResult, error_result, line_id, response_result
from .backends import NoResponseError, ServerBatch
from .line_files import InputFile, OutputFile, open_input, open_output
from .options import BatchOptions

if TYPE_CHECKING:
    from .local_backend import LocalBatch

type BatchBackend = "ServerBatch | LocalBatch"
"""Responds to lines. Both have the same methods, whose coroutines run in one event loop."""

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
                progress = asyncio.run(_run(_backend(options, signals), source, output, signals))
                status = FAILURE_STATUS if 0 < progress.num_lines == progress.num_failed else 0
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


class BatchProgress:
    """Totals of a run so far, which are shown with tokens per second and the time left.

    Attributes:
      num_lines: Number of lines that have ended.
      num_failed: Number of these lines that ended with an error.
      prompt_tokens: Total prompt tokens.
      generated_tokens: Total generated tokens.
      bar: Bar of a terminal, which is shown during its `with` block.

    Args:
      total: Number of lines of the input.
      num_done: Number of lines that earlier runs have finished.
    """

    def __init__(self, total: int, num_done: int) -> None:
        self.num_lines = self.num_failed = self.prompt_tokens = self.generated_tokens = 0
        self._total = total
        self._num_done = num_done
        self._began = self._shown_at = time.monotonic()
        console = Console(stderr=True)
        self.bar = Progress(console=console, auto_refresh=False, transient=True, disable=not console.is_terminal)
        self._task = self.bar.add_task("batch", total=total, completed=num_done)

    def add(self, result: LineResult) -> None:
        """Counts the result of a line, and shows the progress, at most once per interval."""
        self.num_lines += 1
        self.num_failed += result.is_failed
        self.prompt_tokens += result.usage.input
        self.generated_tokens += result.usage.output
        now = time.monotonic()
        if now - self._shown_at < (_LINE_S if self.bar.disable else _DRAW_S):
            return
        self._shown_at = now
        done = self._num_done + self.num_lines
        text = f"{done:,} of {self._total:,} lines, {self._speed:,.0f} tokens per second"
        if self.bar.disable:
            print_status(text)
        else:
            self.bar.update(self._task, completed=done, description=text, refresh=True)

    def summary(self) -> str:
        """Returns a line about a run that has ended."""
        failed = f", {self.num_failed:,} of them with errors" if self.num_failed else ""
        tokens = f"{self.prompt_tokens:,} prompt tokens and {self.generated_tokens:,} generated"
        return f"{self.num_lines:,} lines{failed}; {tokens}, {self._speed:,.0f} per second"

    @property
    def _speed(self) -> float:
        return self.generated_tokens / max(time.monotonic() - self._began, 1e-3)


async def _run(backend: BatchBackend, source: InputFile, output: OutputFile, signals: Signals) -> BatchProgress:
    try:
        await backend.start()
        run = BatchRun(backend, source, output, lambda: signals.first is not None)
        with run.progress.bar:
            await run.run()
        print_status(run.progress.summary())
        return run.progress
    finally:
        await backend.close()


class BatchRun:
    """One run over the unfinished lines.

    Attributes:
      progress: Totals of the run so far.

    Args:
      backend: Backend that has started.
      source: File of the requests.
      output: File to which the output line of each request is written.
      is_stopping: Returns whether no more lines should be sent.
      give_up_s: Seconds without any response after which the run ends.
    """

    def __init__(
        self,
        backend: BatchBackend,
        source: InputFile,
        output: OutputFile,
        is_stopping: Callable[[], bool],
        give_up_s: float = _GIVE_UP_S,
    ) -> None:
        self.progress = BatchProgress(len(source.index), int(output.is_done.sum()))
        self._backend = backend
        self._source = source
        self._lines = source.lines(output.is_done)
        self._output = output
        self._is_stopping = is_stopping
        self._give_up_s = give_up_s
        self._num_open = 0
        self._heard_at = time.monotonic()

    async def run(self) -> None:
        """Sends all lines, and returns when they have ended. Once `is_stopping`, only lines already sent are awaited.

        Raises:
          CommandError: The servers stopped responding, or the output cannot be written.
        """
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
        while not self._is_stopping():
            wait_s = random.uniform(0.5, 1.0) * pause_s
            try:
                response = await self._send(line)
                if response.status not in _BUSY:
                    return response
                wait_s = _retry_after_s(response, wait_s)
            except NoResponseError as error:
                # a line that a server works on may take longer than any limit
                if not self._num_open and time.monotonic() - self._heard_at > self._give_up_s:
                    fix = "run the same command to continue"
                    raise CommandError(f"no response for {self._give_up_s:g} s ({error}); {fix}") from None
            await self._pause(wait_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return None

    async def _send(self, line: BatchLine) -> Response:
        self._num_open += 1
        try:
            response = await self._backend.send(line)
        finally:
            self._num_open -= 1
        self._heard_at = time.monotonic()
        return response

    async def _pause(self, seconds: float) -> None:
        """Waits, unless the run is stopped."""
        end = time.monotonic() + min(seconds, _LONGEST_PAUSE_S)
        while (left := end - time.monotonic()) > 0:
            if self._is_stopping():
                return
            await asyncio.sleep(min(left, _TICK_S))

    def _end(self, place: int, result: LineResult) -> None:
        self._output.append(place, result.line)
        self.progress.add(result)


def _retry_after_s(response: Response, default_s: float) -> float:
    """Returns the seconds to wait according to a response, or the default if it has none, or a date."""
    try:
        return float(response.headers[b"retry-after"])
    except (KeyError, ValueError):
        return default_s
