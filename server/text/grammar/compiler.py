"""Compiles grammars in processes of their own, each once, and fairly between tenants."""

import asyncio
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

from ...tenancy.tenant import tenant
from ..grammar_worker.limits import Limits
from ..tokenizer import Tokenizer
from .cache import Evicted, GrammarCache
from .constraint import Grammar
from .process import Nursery
from .spec import GrammarBusyError, GrammarError, GrammarSpec
from .turns import Turn, Turns

LANES: Final = 2
"""Grammars that are compiled at a time. Each takes a CPU."""

MAX_WAITING: Final = 64
WAIT_S: Final = 10.0
"""Seconds that a grammar may wait for a lane."""

MAX_GRAMMARS: Final = 128
"""Grammars that are remembered or followed at a time. Each has a process, of some 3 MB as a rule."""

MAX_CACHED: Final = 64
MAX_CACHED_BYTES: Final = 2**30

type _Key = tuple[str, GrammarSpec]


class Compilation(NamedTuple):
    """Result of a compilation, and its CPU seconds."""

    result: Grammar | GrammarError | GrammarBusyError
    cpu_s: float


type Compile = Callable[[GrammarSpec], Compilation]
"""Returns when a grammar is compiled, or known not to compile; for any thread."""


def _compile(nursery: Nursery, spec: GrammarSpec) -> Compilation:
    try:
        process = nursery.new_process()
    except GrammarError as error:
        return Compilation(error, 0.0)
    except OSError as error:
        return Compilation(GrammarBusyError(f"no process for another grammar: {error.strerror}"), 0.0)
    try:
        process.compile(spec)
    except GrammarError as error:
        return Compilation(error, process.cpu_s)
    return Compilation(Grammar(process), process.cpu_s)


@dataclass(slots=True, eq=False)
class _Job:
    """One grammar's compilation.

    Attributes:
      begun: is done once it has a lane.
      done: its end.
      num_waiters: requests that wait for it.
    """

    key: _Key
    turn: Turn
    begun: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    done: asyncio.Future[Grammar] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    num_waiters: int = 0


class GrammarCompiler:
    """
    Args:
      end_token_ids: all that end an answer.
      tenants: how many there are; grammars are known, and waited for, by tenant.
      max_cached: compiled grammars to remember.
      max_grammars: compiled grammars that may be remembered or in use.
      wait_s: how long a grammar may wait for others.
      limits: of each grammar.
      compile_: in place of compiling in processes.
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
        limits: Limits = Limits(),  # noqa: B008 - a frozen value
        compile_: Compile | None = None,
    ) -> None:
        self._compile = compile_ or partial(_compile, Nursery(tokenizer, end_token_ids, limits))
        self._threads = ThreadPoolExecutor(LANES, thread_name_prefix="grammar")
        self._wait_s = wait_s
        self._max_grammars, self._is_shared = max_grammars, tenants > 1
        self._turns = Turns(LANES, MAX_WAITING, tenants)
        self._jobs: dict[_Key, _Job] = {}
        self._waiting: dict[Turn, _Job] = {}
        self._cache = GrammarCache(max_cached, MAX_CACHED_BYTES)
        self._alive: weakref.WeakKeyDictionary[Grammar, str] = weakref.WeakKeyDictionary()

    async def compile(self, spec: GrammarSpec) -> Grammar:
        """Returns the grammar of the current tenant. Cancelling this withdraws what has not begun and nobody else
        waits for.

        Raises:
          GrammarError: the grammar is wrong, has a feature that is not supported, or takes too much to compile; or
            there is no tokenizer that could follow it.
          GrammarBusyError: too many grammars wait, or are in use.
        """
        key = tenant.get(), spec
        if (known := self._cache.get(*key)) is not None:
            return known
        job = self._jobs.get(key) or self._add(key)
        job.num_waiters += 1
        try:
            await asyncio.wait((job.begun,), timeout=self._wait_s)
            if not job.begun.done():
                raise GrammarBusyError("other grammars take too long to compile; try again later")
            return await asyncio.shield(job.done)
        finally:
            job.num_waiters -= 1
            if not job.num_waiters and not job.begun.done():
                self._withdraw(job)

    def _add(self, key: _Key) -> _Job:
        self._make_room(key[0])
        job = _Job(key, self._turns.add(key[0]))
        job.done.add_done_callback(lambda done: done.exception())  # maybe nobody waits any more
        self._jobs[key] = self._waiting[job.turn] = job
        self._begin()
        return job

    def _make_room(self, who: str) -> None:
        """Forgets what this tenant does not use now, where it has too many.

        Raises:
          GrammarBusyError: its requests use too many grammars.
        """
        in_use: list[Evicted] = []
        while not self._has_room(who):
            evicted = self._cache.evict(who)
            if evicted is None:
                self._restore(who, in_use)
                whose = " of this API key" if self._is_shared else ""
                raise GrammarBusyError(f"requests{whose} use too many different grammars; try again later")
            in_use.append(evicted)
        self._restore(who, in_use)

    def _restore(self, who: str, evicted: list[Evicted]) -> None:
        for spec, reference in evicted:
            if (grammar := reference()) is not None:
                self._cache.put(who, spec, grammar)

    def _has_room(self, who: str) -> bool:
        owners = list(self._alive.values())
        free = self._max_grammars - len(owners)
        return free > 0 and not (self._is_shared and owners.count(who) >= free)

    def _withdraw(self, job: _Job) -> None:
        self._turns.remove(job.turn)
        del self._jobs[job.key], self._waiting[job.turn]

    def _begin(self) -> None:
        while (turn := self._turns.next()) is not None:
            job = self._waiting.pop(turn)
            job.begun.set_result(None)
            compiling = asyncio.get_running_loop().run_in_executor(self._threads, self._compile, job.key[1])
            compiling.add_done_callback(partial(self._end, job))

    def _end(self, job: _Job, compiled: asyncio.Future[Compilation]) -> None:
        del self._jobs[job.key]
        error = compiled.exception()
        cpu_s = 0.0 if error is not None else compiled.result().cpu_s
        self._turns.end(job.turn, cpu_s)
        if error is not None:
            job.done.set_exception(error)
        else:
            self._settle(job, compiled.result().result)
        self._begin()

    def _settle(self, job: _Job, result: Grammar | GrammarError | GrammarBusyError) -> None:
        if not isinstance(result, Grammar):
            job.done.set_exception(result)
            return
        self._alive[result] = job.key[0]
        self._cache.put(*job.key, result)
        job.done.set_result(result)
