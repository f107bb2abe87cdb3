"""Runs the engine on a separate thread, and delivers outputs on the event loop."""

import asyncio
import math
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Final, Protocol, runtime_checkable

from .engine_core import EngineCore
from .types.config import EngineStats
from .types.errors import EngineDeadError, EngineStoppedError, QueueFullError, UnknownRequestError
from .types.request import FinishReason, Request, TokenOutput, join_outputs
from .types.snapshot import RequestSnapshot, RequestSnapshotFormat, SavedState, SavedStateFormat

type Item = TokenOutput | Exception
"""An output of a request, or the error that ended it."""

_MAX_COMMANDS: Final = 64
"""Maximum number of commands that are applied before a step; each takes about a tenth of a millisecond."""


@runtime_checkable
class OutputSink(Protocol):
    """Receives the outputs of one request, on the event loop."""

    def put(self, item: Item) -> None:
        """Receives the next output. It must return soon and raise nothing.

        An exception, or an output with a finish reason, is the last item.
        """


type _Command = Callable[[EngineCore], object]
"""Work of the thread between two steps."""


class AsyncEngine:
    """Runs an `EngineCore` on a separate thread.

    Commands reach the thread through one queue: an idle thread waits for it, a busy one polls it between steps. The
    outputs of a step reach the event loop in one call, which puts them into the sinks of their requests. Only the event
    loop uses the sinks, and only the thread uses the core.

    Attributes:
      error: Error that ended the engine; None while it is alive.
      is_ready: Whether the engine is loaded, compiled and alive.

    Args:
      build: Builds the core. It is slow, since it loads and compiles, and is called on the thread.
    """

    def __init__(self, build: Callable[[], EngineCore]) -> None:
        self._build = build
        self._inbox: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()  # None ends the thread
        self._outbox: deque[Sequence[tuple[str, Item]]] = deque()
        self._is_delivery_due = False
        self._sinks: dict[str, OutputSink] = {}
        self._reads: set[asyncio.Future[Any]] = set()
        self._pending_reads: deque[tuple[Callable[[EngineCore], Any], asyncio.Future[Any]]] = deque()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop  # set by `start`, as `_ready` is
        self._ready: asyncio.Future[None]
        self.error: BaseException | None = None
        self.is_ready = False
        self._core: EngineCore | None = None
        self._num_steps = 0
        self._is_in_step = False
        self._is_paused = False

    @property
    def stats(self) -> EngineStats:
        """Current statistics; see `EngineCore.stats`."""
        return EngineStats() if self._core is None else self._core.stats

    @property
    def is_stuck(self) -> bool:
        """Whether a thread still runs although the engine is dead or stopped. Only the process's exit then ends it."""
        return self.error is not None and self._thread is not None and self._thread.is_alive()

    @property
    def state_format(self) -> SavedStateFormat:
        """Format of the states that `save` returns; known once the engine is ready."""
        assert self._core is not None
        assert self._core.state_format is not None
        return self._core.state_format

    @property
    def request_snapshot_format(self) -> RequestSnapshotFormat | None:
        """Format of request snapshots as files; None without them, or if the engine is not ready yet."""
        return None if self._core is None else self._core.request_snapshot_format

    def start(self) -> None:
        """Starts the thread. Call it once, on the event loop on which requests are submitted."""
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def wait_ready(self) -> None:
        """Waits until every shape is compiled.

        Raises:
          Exception: Any error of `build`.
        """
        await asyncio.shield(self._ready)

    async def stop(self, timeout_s: float | None = None) -> None:
        """Ends the thread after its current step; unfinished requests end with `EngineDeadError`.

        Args:
          timeout_s: Seconds after which the requests end even if the step has not; None waits for the step.
        """
        if self._thread is None:
            return
        await asyncio.to_thread(self.join, timeout_s)
        if self._thread.is_alive():
            self.fail(EngineStoppedError("the engine was stopped"))

    def join(self, timeout_s: float | None = None) -> None:
        """Ends the thread after its current step, and waits for that. Callable on any thread and more than once.

        Args:
          timeout_s: Maximum seconds to wait; None waits for the step.
        """
        self._inbox.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def fail(self, error: BaseException) -> None:
        """Ends every request immediately, even if the thread is in a step. Call it on the event loop."""
        self._inbox.put(None)
        self._on_death(error)

    def check(self) -> int | None:
        """Ends the engine if another host has been lost. A step that waits for that host cannot notice this.

        Returns:
          Number of the thread's current step; None between steps.
        """
        hosts = None if self._core is None else self._core.hosts
        if hosts is not None and hosts.failure is not None and self.error is None:
            self.fail(hosts.failure)
        return self._num_steps if self._is_in_step else None

    def submit(self, request: Request, sink: OutputSink) -> None:
        """Starts a request, whose outputs go to `sink`. A full queue is reported there, as `QueueFullError`.

        Raises:
          EngineDeadError: The engine is not ready, died or was stopped.
          ValueError: The id is in use.
        """
        if not self.is_ready:
            raise EngineStoppedError("the engine is not running")
        if request.id in self._sinks:
            raise ValueError(f"request id {request.id!r} is in use")
        self._sinks[request.id] = sink
        self._inbox.put(partial(self._add, request))

    def abort(self, request_id: str) -> None:
        """Ends a request, if it has not ended, and frees its slot. Its sink gets `FinishReason.ABORT`."""
        if request_id in self._sinks:
            self._inbox.put(lambda core: core.abort(request_id))
            self._put(request_id, TokenOutput(finish_reason=FinishReason.ABORT))

    async def pause(self) -> None:
        """Ends all stepping after the step in progress. States can still be read.

        All outputs have reached their sinks when this returns.

        Raises:
          EngineDeadError: The engine died or was stopped.
        """
        self._inbox.put(self._pause)
        await self._read(lambda _: None)

    async def save(self, request_id: str, num_generated: int | None = None) -> SavedState:
        """Returns the token history of a request with its longest snapshot; see `EngineCore.save`.

        Raises:
          UnknownRequestError: No request with this id is running or ended recently.
          EngineDeadError: The engine died or was stopped.
        """
        return await self._read(lambda core: core.save(request_id, num_generated))

    async def insert(self, state: SavedState) -> None:
        """Adds a state's snapshot to the prefix cache; see `EngineCore.insert`.

        Raises:
          EngineDeadError: The engine died or was stopped.
        """
        await self._read(lambda core: core.insert(state))

    async def snapshot_request(self, request_id: str) -> RequestSnapshot:
        """Returns the state of a running request, from which it can continue; see `EngineCore.snapshot_request`.

        Outputs with all tokens that the snapshot covers reach the sink before or soon after it is returned.

        Raises:
          UnknownRequestError: No request with this id is running, or it has not generated a token yet.
          EngineDeadError: The engine died or was stopped.
        """
        return await self._read(lambda core: core.snapshot_request(request_id))

    async def _read[Result](self, read: Callable[[EngineCore], Result]) -> Result:
        """Reads or adds a state on the thread: at most one per engine step, since each takes time.

        Raises:
          UnknownRequestError: No request has this id.
          EngineDeadError: The engine died or was stopped.
        """
        if not self.is_ready:
            raise EngineStoppedError("the engine is not running")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._reads.add(future)
        self._inbox.put(lambda _: self._pending_reads.append((read, future)))
        try:
            return await future
        finally:
            self._reads.discard(future)

    def _run(self) -> None:
        try:
            self._core = core = self._build()
            core.wake = lambda: self._inbox.put(lambda _: None)
            self._call(self._on_ready)
            while self._take_commands(core):
                if self._is_paused:
                    continue
                self._num_steps += 1
                self._is_in_step = True
                outputs = core.step()
                self._is_in_step = False
                self._hand_over(outputs)
            core.close()
            self._call(self._on_death, EngineStoppedError("the engine was stopped"))
        except BaseException as error:  # the state was donated to the failed step, so no other step can run
            self._call(self._on_death, error)

    def _take_commands(self, core: EngineCore) -> bool:
        """Applies queued commands, and waits for one if there is nothing else to do. Returns False at the end.

        A step waits for at most `_MAX_COMMANDS`, so that clients that connect and disconnect quickly don't delay all
        others. Reads take turns: one of them is served before each step.
        """
        for _ in range(_MAX_COMMANDS):
            timeout = None if self._pending_reads else math.inf if self._is_paused else core.next_timeout
            try:
                if timeout is None:  # a step or a read has something to do
                    command = self._inbox.get(block=False)
                else:
                    seconds = None if timeout == math.inf else max(0.0, timeout - time.monotonic())
                    command = self._inbox.get(timeout=seconds)
            except queue.Empty:
                break
            if command is None:
                return False
            command(core)
        if self._pending_reads:
            self._serve_read(core)
        return True

    def _add(self, request: Request, core: EngineCore) -> None:
        try:
            core.add(request)
        except (QueueFullError, ValueError) as error:
            self._hand_over([(request.id, error)])

    def _pause(self, core: EngineCore) -> None:
        self._is_paused = True
        self._hand_over(core.settle())

    def _serve_read(self, core: EngineCore) -> None:
        """Serves the oldest pending read whose caller is still waiting."""
        while self._pending_reads:
            read, future = self._pending_reads.popleft()
            if future.cancelled():
                continue
            try:
                self._call(self._settle, future, read(core))
            except UnknownRequestError as error:
                self._call(self._settle, future, error)
            return

    def _call[*Args](self, function: Callable[[*Args], None], *args: *Args) -> None:
        """Runs a function on the event loop, unless the loop is closed."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)

    def _on_ready(self) -> None:
        self._ready.set_result(None)
        self.is_ready = self.error is None

    def _hand_over(self, items: Sequence[tuple[str, Item]]) -> None:
        """Schedules a delivery, unless one is due: a busy event loop gets the outputs of several steps in one call."""
        if not items:
            return
        self._outbox.append(items)
        if not self._is_delivery_due:
            self._is_delivery_due = True
            self._call(self._deliver)

    def _deliver(self) -> None:
        """Puts all scheduled items into the sinks."""
        self._is_delivery_due = False  # before the outbox is read, so that later items schedule another delivery
        items: defaultdict[str, list[Item]] = defaultdict(list)
        while self._outbox:
            for request_id, item in self._outbox.popleft():
                items[request_id].append(item)
        for request_id, own in items.items():
            for item in _joined(own):
                self._put(request_id, item)

    def _put(self, request_id: str, item: Item) -> None:
        is_last = isinstance(item, Exception) or item.finish_reason is not None
        sink = self._sinks.pop(request_id, None) if is_last else self._sinks.get(request_id)
        if sink is not None:
            sink.put(item)

    def _settle(self, future: "asyncio.Future[Any]", result: object) -> None:
        if future.done():  # cancelled
            return
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)

    def _on_death(self, error: BaseException) -> None:
        if self.error is not None:
            return
        self.error, self.is_ready = error, False
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # marks it as retrieved, since `wait_ready` may not have been called
        reported = error if isinstance(error, EngineDeadError) else EngineDeadError("the engine died")
        for request_id in list(self._sinks):
            self._put(request_id, reported)
        for future in self._reads:
            self._settle(future, reported)


def _joined(items: Sequence[Item]) -> Sequence[Item]:
    """Returns the items of one request with consecutive outputs joined, since each output has a cost for its reader.

    An abort or an error is not joined, so that earlier tokens don't become part of it.
    """
    if len(items) == 1:
        return items
    joined: list[Item] = []
    for has_tokens, group in groupby(items, _has_tokens):
        run = list(group)
        joined += [join_outputs([each for each in run if isinstance(each, TokenOutput)])] if has_tokens else run
    return joined


def _has_tokens(item: Item) -> bool:
    return isinstance(item, TokenOutput) and item.finish_reason not in (FinishReason.ABORT, FinishReason.ERROR)
