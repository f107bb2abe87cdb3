"""Compiles each grammar once, in a separate process, and fairly between tenants.

Compiled grammars are cached, also fairly, which cachetools' caches are not. Tenants take turns by CPU time.
"""

import asyncio
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

from ....engine.scheduling.slots import FairShares
from ...tenancy.tenant import tenant
from ...text.tokenizer import Tokenizer
from ..grammar_worker.limits import GrammarLimits
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

_MICROSECONDS: Final = 1_000_000

type _Key = tuple[str, GrammarSpec]


class Compilation(NamedTuple):
    """Result of a compilation, and its CPU seconds."""

    result: Grammar | GrammarError | GrammarBusyError
    cpu_s: float


type Compile = Callable[[GrammarSpec], Compilation]
"""Compiles a grammar; called on any thread."""

type Evicted = tuple[GrammarSpec, weakref.ref[Grammar]]
"""A grammar that left the cache; it still exists while requests use it."""


class GrammarCache:
    """Least-recently-used cache per tenant.

    A full cache evicts a grammar of the tenant that holds the most, so that no tenant can evict another's grammars by
    requesting many.

    Args:
      max_grammars: Maximum number of grammars.
      max_bytes: Maximum bytes of memory that grammars hold together; a single grammar may exceed it.
    """

    def __init__(self, max_grammars: int, max_bytes: int) -> None:
        self._max_grammars, self._max_bytes = max_grammars, max_bytes
        self._grammars: dict[str, OrderedDict[GrammarSpec, Grammar]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._grammars.values()))

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that all grammars hold."""
        return sum(map(self._bytes_of, self._grammars))

    def get(self, tenant: str, spec: GrammarSpec) -> Grammar | None:
        """Returns a tenant's grammar if it is cached and its process is alive, or None."""
        own = self._grammars.get(tenant, OrderedDict())
        grammar = own.get(spec)
        if grammar is None:
            return None
        if not grammar.is_alive:
            self._discard(tenant, spec)
            return None
        own.move_to_end(spec)
        return grammar

    def put(self, tenant: str, spec: GrammarSpec, grammar: Grammar) -> None:
        """Adds a grammar as the most recently used one, and evicts others if the cache is full."""
        self._grammars.setdefault(tenant, OrderedDict())[spec] = grammar
        while len(self) > self._max_grammars:
            self.evict(max(self._grammars, key=lambda each: len(self._grammars[each])))
        while self.num_bytes > self._max_bytes and len(self) > 1:
            self.evict(max(self._grammars, key=self._bytes_of))

    def evict(self, tenant: str) -> Evicted | None:
        """Removes and returns the tenant's least recently used grammar, if it has one."""
        own = self._grammars.get(tenant)
        if not own:
            return None
        spec, grammar = next(iter(own.items()))
        self._discard(tenant, spec)
        return spec, weakref.ref(grammar)

    def _discard(self, tenant: str, spec: GrammarSpec) -> None:
        del self._grammars[tenant][spec]
        if not self._grammars[tenant]:
            del self._grammars[tenant]

    def _bytes_of(self, tenant: str) -> int:
        return sum(spec.num_bytes + grammar.num_bytes for spec, grammar in self._grammars[tenant].items())


@dataclass(frozen=True, slots=True, eq=False)
class QueueEntry:
    """A grammar's place in the queue."""

    tenant: str


class CompileQueue:
    """Queue of grammars. The oldest grammar of the tenant that has used the least CPU time is next.

    With several tenants, none may hold more of the queue, or of the lanes, than it leaves free. The queue uses neither
    clocks nor threads.

    Args:
      lanes: Number of grammars that are compiled at the same time.
      max_waiting: Maximum number of waiting grammars.
      tenants: Number of tenants.
    """

    def __init__(self, lanes: int, max_waiting: int, tenants: int = 1) -> None:
        self._lanes, self._max_waiting, self._is_shared = lanes, max_waiting, tenants > 1
        self._shares = FairShares()
        self._waiting: dict[str, deque[QueueEntry]] = {}
        self._running: dict[str, int] = {}

    @property
    def num_waiting(self) -> int:
        """Number of waiting grammars."""
        return sum(map(len, self._waiting.values()))

    def add(self, tenant: str) -> QueueEntry:
        """Queues a grammar.

        Raises:
          GrammarBusyError: The queue, or the tenant's share of it, is full.
        """
        own, free = len(self._waiting.get(tenant, ())), self._max_waiting - self.num_waiting
        if free <= 0 or (self._is_shared and own >= free):
            whose = " of this API key" if self._is_shared and free > 0 else ""
            raise GrammarBusyError(f"too many grammars{whose} wait to be compiled; try again later")
        if tenant not in self._waiting:
            self._waiting[tenant] = deque()
            self._shares.enter(tenant)
        entry = QueueEntry(tenant)
        self._waiting[tenant].append(entry)
        return entry

    def remove(self, entry: QueueEntry) -> None:
        """Removes a waiting grammar."""
        self._waiting[entry.tenant].remove(entry)
        self._forget_if_empty(entry.tenant)

    def next(self) -> QueueEntry | None:
        """Removes and returns the next grammar, which occupies a lane until `end`; None if no grammar may start."""
        free = self._lanes - sum(self._running.values())
        tenants = [tenant for tenant in self._waiting if self._may_run(tenant, free)]
        if not tenants:
            return None
        tenant = self._shares.first(tenants)
        entry = self._waiting[tenant].popleft()
        self._forget_if_empty(tenant)
        self._running[tenant] = self._running.get(tenant, 0) + 1
        return entry

    def end(self, entry: QueueEntry, cpu_s: float) -> None:
        """Frees a lane, and charges the used CPU time to the tenant."""
        self._running[entry.tenant] -= 1
        if not self._running[entry.tenant]:
            del self._running[entry.tenant]
        self._shares.charge(entry.tenant, int(cpu_s * _MICROSECONDS))

    def _may_run(self, tenant: str, free: int) -> bool:
        return free > 0 and not (self._is_shared and self._running.get(tenant, 0) >= free)

    def _forget_if_empty(self, tenant: str) -> None:
        if not self._waiting[tenant]:
            del self._waiting[tenant]


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
