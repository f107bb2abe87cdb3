"""The engine's one thread, and a stream of tokens per request for the event loop. The only file with threads."""

import asyncio
import math
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from .core.config import EngineStats
from .core.errors import EngineDeadError, QueueFullError, UnknownRequestError
from .core.mailbox import Mailbox
from .core.request import FinishReason, Request, TokenOutput, join_outputs
from .engine_core import EngineCore
from .prefix_cache.saved_state import SavedState, SavedStateFormat

type _Event = tuple[str, TokenOutput | Exception]


@dataclass(frozen=True, slots=True)
class _Add:
    request: Request


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Save:
    request_id: str
    num_generated: int | None
    future: "asyncio.Future[SavedState]"


class _Wake:
    """Ends the wait for a command: a step has something to do."""


_MAX_COMMANDS: Final = 64
"""Number of commands that are applied before a step; each takes a tenth of a millisecond or so."""


class _Stop:
    """Ends the thread."""


type _Command = _Add | _Abort | _Save | _Wake | _Stop


class AsyncEngine:
    """Runs an `EngineCore` on a thread of its own.

    One queue leads in, on which the thread waits when it is idle and glances when it is busy; one hand-over per step
    leads out, with all outputs. Streams are touched by the event loop only, the core by the thread only.

    Args:
      build: makes the core; slow (it loads and compiles) and called on the thread.
    """

    def __init__(self, build: Callable[[], EngineCore]) -> None:
        self._build = build
        self._inbox: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._streams: dict[str, Mailbox[TokenOutput | Exception]] = {}
        self._saves: set[asyncio.Future[SavedState]] = set()
        self._pending_saves: deque[_Save] = deque()
        self._state_format: SavedStateFormat | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: asyncio.Future[None] | None = None
        self._stats = EngineStats()
        self._error: BaseException | None = None
        self._core: EngineCore | None = None
        self._num_steps = 0
        self._is_in_step = False

    @property
    def stats(self) -> EngineStats:
        """The last snapshot, taken after a step."""
        return self._stats

    @property
    def error(self) -> BaseException | None:
        """Why the engine died; None while it has not."""
        return self._error

    @property
    def unseen_error(self) -> EngineDeadError | None:
        """Why the engine should be given up, while its thread may not have noticed."""
        return None if self._core is None else self._core.failure

    @property
    def is_ready(self) -> bool:
        """Whether requests are served: loaded, compiled and alive."""
        return self._ready is not None and self._ready.done() and self._error is None

    @property
    def current_step(self) -> int | None:
        """The number of the step that the thread is in; None between two, and while there is nothing to do."""
        return self._num_steps if self._is_in_step else None

    @property
    def is_stuck(self) -> bool:
        """Whether the thread goes on though the engine is dead; then only the end of the process ends it."""
        return self._error is not None and self._thread is not None and self._thread.is_alive()

    @property
    def state_format(self) -> SavedStateFormat:
        """Of the states that `save` gives; known once the engine is ready."""
        assert self._state_format is not None
        return self._state_format

    def start(self) -> None:
        """Starts the thread; call it once, on the event loop that will use the streams."""
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def wait_ready(self) -> None:
        """Returns once every shape is compiled.

        Raises:
          Exception: whatever `build` raised.
        """
        assert self._ready is not None
        await asyncio.shield(self._ready)

    async def stop(self, patience_s: float | None = None) -> None:
        """Ends the thread after the step it is in; streams that are still open end with `EngineDeadError`.

        Args:
          patience_s: how long that step may take before they are ended without it.
        """
        if self._thread is None:
            return
        self._inbox.put(_Stop())
        await asyncio.to_thread(self._thread.join, patience_s)
        if self._thread.is_alive():
            self.fail(EngineDeadError("the engine was stopped"))

    def fail(self, error: BaseException) -> None:
        """Gives the engine up whatever its thread does: every stream ends. To be called on the event loop."""
        self._inbox.put(_Stop())
        self._on_death(error)

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput]:
        """The tokens of a request as they come; a reader that falls behind gets those of several steps as one output.
        Closing the stream early aborts it and frees its slot.

        Raises:
          QueueFullError: too many requests wait; before the first output.
          EngineDeadError: the engine died or was stopped.
          ValueError: the id is in use.
        """
        if not self.is_ready:
            raise EngineDeadError("the engine is not running")
        if request.id in self._streams:
            raise ValueError(f"request id {request.id!r} is in use")
        stream: Mailbox[TokenOutput | Exception] = Mailbox()
        self._streams[request.id] = stream
        self._inbox.put(_Add(request))
        try:
            while True:
                for item in _joined(await stream.get_all()):
                    if isinstance(item, Exception):
                        raise item
                    yield item
                    if item.finish_reason is not None:
                        return
        finally:
            del self._streams[request.id]
            self._inbox.put(_Abort(request.id))

    async def save(self, request_id: str, num_generated: int | None = None) -> SavedState:
        """A request's token history, and the snapshot that spares prefilling it again; see `EngineCore.save`.

        At most one save is served per engine step, as each takes time in proportion to the history.

        Raises:
          UnknownRequestError: no request of that id runs, or has ended lately.
          EngineDeadError: the engine died or was stopped.
        """
        if not self.is_ready:
            raise EngineDeadError("the engine is not running")
        future: asyncio.Future[SavedState] = asyncio.get_running_loop().create_future()
        self._saves.add(future)
        self._inbox.put(_Save(request_id, num_generated, future))
        try:
            return await future
        finally:
            self._saves.discard(future)

    def abort(self, request_id: str) -> None:
        """Ends a request from outside its stream, which then ends with `FinishReason.ABORT`."""
        stream = self._streams.get(request_id)
        if stream is not None:
            self._inbox.put(_Abort(request_id))
            stream.put(TokenOutput(finish_reason=FinishReason.ABORT))

    def _run(self) -> None:
        try:
            self._core = core = self._build()
            self._state_format = core.state_format
            core.wake = lambda: self._inbox.put(_Wake())
            self._stats = core.stats
            self._call(self._on_ready)
            while self._take_commands(core):
                self._num_steps += 1
                self._is_in_step = True
                outputs = core.step()
                self._is_in_step = False
                self._stats = core.stats
                if outputs:
                    self._call(self._deliver, list[_Event](outputs))
            core.close()
            self._call(self._on_death, EngineDeadError("the engine was stopped"))
        except BaseException as error:  # a donated step that failed has taken the state with it: nothing can go on
            self._call(self._on_death, error)

    def _take_commands(self, core: EngineCore) -> bool:
        """Applies what the inbox holds, waiting only while there is nothing else to do; False when it says stop.

        A step waits for `_MAX_COMMANDS` at most: clients that come and go faster than commands are applied would else
        hold up all others. Saves wait for their turn: one of them is served before each step.
        """
        for _ in range(_MAX_COMMANDS):
            try:
                command = self._next_command(core)
            except queue.Empty:
                self._serve_save(core)
                return True
            match command:
                case _Add(request):
                    try:
                        core.add(request)
                    except (QueueFullError, ValueError) as error:
                        self._call(self._deliver, list[_Event]([(request.id, error)]))
                case _Abort(request_id):
                    core.abort(request_id)
                    self._stats = core.stats
                case _Save():
                    self._pending_saves.append(command)
                case _Stop():
                    return False
        self._serve_save(core)
        return True

    def _next_command(self, core: EngineCore) -> _Command:
        """Waits for a command for as long as neither a step nor a save has something to do.

        Raises:
          queue.Empty: there is none, and there is something to do.
        """
        timeout = None if self._pending_saves else core.next_timeout
        if timeout is None:
            return self._inbox.get(block=False)
        self._stats = core.stats
        return self._inbox.get(timeout=None if timeout == math.inf else max(0.0, timeout - time.monotonic()))

    def _serve_save(self, core: EngineCore) -> None:
        """Serves the oldest pending save, if there is one."""
        while self._pending_saves:
            save = self._pending_saves.popleft()
            if save.future.cancelled():
                continue
            try:
                self._call(self._settle, save.future, core.save(save.request_id, save.num_generated))
            except UnknownRequestError as error:
                self._call(self._settle, save.future, error)
            return

    def _call[*Args](self, function: Callable[[*Args], None], *args: *Args) -> None:
        """Runs a function on the event loop, if it is still there."""
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)

    def _on_ready(self) -> None:
        assert self._ready is not None
        self._ready.set_result(None)

    def _deliver(self, events: list[_Event]) -> None:
        for request_id, item in events:
            stream = self._streams.get(request_id)
            if stream is not None:
                stream.put(item)

    def _settle(self, future: "asyncio.Future[SavedState]", result: SavedState | Exception) -> None:
        if future.done():  # whoever waited has left
            return
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)

    def _on_death(self, error: BaseException) -> None:
        assert self._ready is not None
        if self._error is not None:
            return
        self._error = error
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # whoever waits gets it; nobody need wait
        told = error if isinstance(error, EngineDeadError) else EngineDeadError("the engine died")
        for stream in self._streams.values():
            stream.put(told)
        for future in self._saves:
            self._settle(future, told)


def _joined(items: Sequence[TokenOutput | Exception]) -> Iterator[TokenOutput | Exception]:
    """The same with fewer outputs: one costs its reader as much as many. What ended a request early stands alone, so
    that the tokens before it are not taken for part of it."""
    outputs: list[TokenOutput] = []
    for item in items:
        if isinstance(item, TokenOutput) and item.finish_reason not in (FinishReason.ABORT, FinishReason.ERROR):
            outputs.append(item)
            continue
        if outputs:
            yield join_outputs(outputs)
            outputs = []
        yield item
    if outputs:
        yield join_outputs(outputs)
