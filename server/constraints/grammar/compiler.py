"""Compiles each grammar once, in a separate process, and fairly between tenants."""

import asyncio
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

from ...tenancy.tenant import tenant
from ...text.tokenizer import Tokenizer
from ..grammar_worker.limits import GrammarLimits
from .cache import Evicted, GrammarCache
from .compile_queue import CompileQueue, QueueEntry
from .constraint import Grammar
from .process import GrammarProcessFactory
from .spec import GrammarBusyError, GrammarError, GrammarSpec

LANES: Final = 2
"""Number of grammars that are compiled at the same time. Each occupies a CPU."""

MAX_WAITING: Final = 64
"""Maximum number of grammars that wait to be compiled."""

WAIT_S: Final = 10.0
"""Maximum seconds that a grammar waits for a lane."""

MAX_GRAMMARS: Final = 128
"""Maximum number of grammars that are cached or in use. Each has a process, usually of about 3 MB."""

MAX_CACHED: Final = 64
"""Maximum number of cached grammars."""

MAX_CACHED_BYTES: Final = 2**30
"""Maximum bytes of memory that cached grammars hold together."""

type _Key = tuple[str, GrammarSpec]


class Compilation(NamedTuple):
    """Result of a compilation, and its CPU seconds."""

    result: Grammar | GrammarError | GrammarBusyError
    cpu_s: float


type Compile = Callable[[GrammarSpec], Compilation]
"""Compiles a grammar; called on any thread."""


def _compile(factory: GrammarProcessFactory, spec: GrammarSpec) -> Compilation:
    try:
        process = factory.new_process()
    except GrammarError as error:
        return Compilation(error, 0.0)
    except OSError as error:
        return Compilation(GrammarBusyError(f"no process for another grammar: {error.strerror}"), 0.0)
    try:
        process.compile(spec)
    except GrammarError as error:
        return Compilation(error, process.cpu_s)
    except GrammarBusyError as error:
        return Compilation(error, 0.0)
    return Compilation(Grammar(process), process.cpu_s)


@dataclass(slots=True, eq=False)
class _Job:
    """Compilation of one grammar.

    Attributes:
      key: Tenant and grammar.
      entry: Place in the queue.
      started: Done once the compilation has a lane.
      done: Result of the compilation.
      num_waiters: Number of requests that wait for it.
    """

    key: _Key
    entry: QueueEntry
    started: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    done: asyncio.Future[Grammar] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    num_waiters: int = 0


class GrammarCompiler:
    """Compiles grammars on demand, and caches them per tenant.

    Args:
      tokenizer: Tokenizer of the model.
      end_token_ids: All tokens that end a generation.
      tenants: Number of tenants. Grammars are cached and queued per tenant.
      max_cached: Maximum number of cached grammars.
      max_grammars: Maximum number of grammars that are cached or in use.
      wait_s: Maximum seconds that a grammar waits for a lane.
      limits: Resource limits of each grammar.
      compile_: Compiles a grammar; None compiles in a process.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        end_token_ids: Sequence[int],
        *,
        tenants: int = 1,
        max_cached: int = MAX_CACHED,
        max_grammars: int = MAX_GRAMMARS,
        wait_s: float = WAIT_S,
        limits: GrammarLimits = GrammarLimits(),  # noqa: B008 - a frozen value
        compile_: Compile | None = None,
    ) -> None:
        self._compile = compile_ or partial(_compile, GrammarProcessFactory(tokenizer, end_token_ids, limits))
        self._threads = ThreadPoolExecutor(LANES, thread_name_prefix="grammar")
        self._wait_s = wait_s
        self._max_grammars, self._is_shared = max_grammars, tenants > 1
        self._queue = CompileQueue(LANES, MAX_WAITING, tenants)
        self._jobs: dict[_Key, _Job] = {}
        self._waiting: dict[QueueEntry, _Job] = {}
        self._cache = GrammarCache(max_cached, MAX_CACHED_BYTES)
        self._alive: weakref.WeakKeyDictionary[Grammar, str] = weakref.WeakKeyDictionary()

    async def compile(self, spec: GrammarSpec) -> Grammar:
        """Returns the compiled grammar for the current tenant.

        Cancellation removes a waiting grammar from the queue, unless other requests wait for it.

        Raises:
          GrammarError: The grammar is wrong, uses an unsupported feature or exceeds the limits, or the model has no
            suitable tokenizer.
          GrammarBusyError: Too many grammars wait or are in use.
        """
        key = tenant.get(), spec
        if (cached := self._cache.get(*key)) is not None:
            return cached
        job = self._jobs.get(key) or self._add(key)
        job.num_waiters += 1
        try:
            await asyncio.wait((job.started,), timeout=self._wait_s)
            if not job.started.done():
                raise GrammarBusyError("other grammars take too long to compile; try again later")
            return await asyncio.shield(job.done)
        finally:
            job.num_waiters -= 1
            if not job.num_waiters and not job.started.done():
                self._withdraw(job)

    def _add(self, key: _Key) -> _Job:
        self._make_room(key[0])
        job = _Job(key, self._queue.add(key[0]))
        job.done.add_done_callback(
            lambda done: done.exception()
        )  # marks the exception as retrieved, as all waiters may be gone
        self._jobs[key] = self._waiting[job.entry] = job
        self._start_waiting()
        return job

    def _make_room(self, owner: str) -> None:
        """Evicts grammars of a tenant that are not in use until one more fits.

        Raises:
          GrammarBusyError: Requests use too many grammars.
        """
        in_use: list[Evicted] = []
        while not self._has_room(owner):
            evicted = self._cache.evict(owner)
            if evicted is None:
                self._restore(owner, in_use)
                whose = " of this API key" if self._is_shared else ""
                raise GrammarBusyError(f"requests{whose} use too many different grammars; try again later")
            in_use.append(evicted)
        self._restore(owner, in_use)

    def _restore(self, owner: str, evicted: list[Evicted]) -> None:
        for spec, reference in evicted:
            if (grammar := reference()) is not None:
                self._cache.put(owner, spec, grammar)

    def _has_room(self, owner: str) -> bool:
        owners = list(self._alive.values())
        free = self._max_grammars - len(owners)
        return free > 0 and not (self._is_shared and owners.count(owner) >= free)

    def _withdraw(self, job: _Job) -> None:
        self._queue.remove(job.entry)
        del self._jobs[job.key], self._waiting[job.entry]

    def _start_waiting(self) -> None:
        while (entry := self._queue.next()) is not None:
            job = self._waiting.pop(entry)
            job.started.set_result(None)
            compiling = asyncio.get_running_loop().run_in_executor(self._threads, self._compile, job.key[1])
            compiling.add_done_callback(partial(self._finish, job))

    def _finish(self, job: _Job, compiled: asyncio.Future[Compilation]) -> None:
        del self._jobs[job.key]
        error = compiled.exception()
        cpu_s = 0.0 if error is not None else compiled.result().cpu_s
        self._queue.end(job.entry, cpu_s)
        if error is not None:
            job.done.set_exception(error)
        else:
            self._settle(job, compiled.result().result)
        self._start_waiting()

    def _settle(self, job: _Job, result: Grammar | GrammarError | GrammarBusyError) -> None:
        if not isinstance(result, Grammar):
            job.done.set_exception(result)
            return
        self._alive[result] = job.key[0]
        self._cache.put(*job.key, result)
        job.done.set_result(result)
