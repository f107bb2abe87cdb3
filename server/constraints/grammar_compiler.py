"""Compiles each grammar once, in a separate process, and fairly between tenants.

Compiled grammars are cached, also fairly: no tenant can evict another's grammars by requesting many.
"""

import asyncio
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from ...engine import TenantStore
from ..tenants import Workers, tenant
from ..text.tokenizer import Tokenizer
from .grammar_process import Grammar, GrammarProcessFactory
from .grammar_spec import GrammarBusyError, GrammarSpec
from .grammar_worker.protocol import GrammarLimits

LANES: Final = 2
"""Number of grammars that are compiled at the same time. Each occupies a CPU."""

MAX_WAITING: Final = 64
"""Maximum number of grammars that wait to be compiled."""

WAIT_S: Final = 10.0
"""Maximum seconds that a grammar waits for a lane."""

MAX_GRAMMARS: Final = 128
"""Maximum number of grammars that are cached or in use. Each has two processes, usually of about 3.5 MB together."""

MAX_CACHED: Final = 64
"""Maximum number of cached grammars."""

MAX_CACHED_BYTES: Final = 2**30
"""Maximum bytes of memory that cached grammars hold together."""

type _Key = tuple[str, GrammarSpec]
"""Tenant and grammar."""

type Compile = Callable[[GrammarSpec], Grammar]
"""Compiles a grammar; called on any thread. Raises `GrammarError` or `GrammarBusyError`."""


def _compile(factory: GrammarProcessFactory, spec: GrammarSpec) -> Grammar:
    try:
        grammar = factory.new_process()
    except OSError as error:
        raise GrammarBusyError(f"no process for another grammar: {error.strerror}") from None
    grammar.compile(spec)
    return grammar


@dataclass(slots=True, eq=False)
class _Job:
    """Compilation of one grammar.

    Attributes:
      started: Set once the compilation has a thread.
      done: Result of the compilation.
      num_waiters: Number of requests that wait for it.
    """

    started: asyncio.Event
    done: asyncio.Future[Grammar]
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
        self._workers = Workers(tenants, LANES, "grammar")
        self._wait_s = wait_s
        self._max_grammars, self._is_shared = max_grammars, tenants > 1
        self._jobs: dict[_Key, _Job] = {}
        self._cache: TenantStore[_Key, Grammar] = TenantStore(max_cached, MAX_CACHED_BYTES)
        self._alive: weakref.WeakValueDictionary[_Key, Grammar] = weakref.WeakValueDictionary()

    async def compile(self, spec: GrammarSpec) -> Grammar:
        """Returns the compiled grammar for the current tenant.

        Cancellation removes a waiting grammar from the queue, unless other requests wait for it.

        Raises:
          GrammarError: The grammar is wrong, uses an unsupported feature or exceeds the limits, or the model has no
            suitable tokenizer.
          GrammarBusyError: Too many grammars wait or are in use.
        """
        key = tenant.get(), spec
        if (grammar := self._alive.get(key)) is not None and grammar.is_alive:
            self._keep(key, grammar)
            return grammar
        job = self._jobs.get(key) or self._add(key)
        job.num_waiters += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await job.started.wait()
            return await asyncio.shield(job.done)
        except TimeoutError:
            raise GrammarBusyError("other grammars take too long to compile; try again later") from None
        finally:
            job.num_waiters -= 1
            if not job.num_waiters and not job.started.is_set():
                job.done.cancel()
                del self._jobs[key]

    def _add(self, key: _Key) -> _Job:
        owner, spec = key
        self._make_room(owner)
        waiting = [each for (each, _), job in self._jobs.items() if not job.started.is_set()]
        free = MAX_WAITING - len(waiting)
        if free <= 0 or (self._is_shared and waiting.count(owner) >= free):
            whose = " of this API key" if self._is_shared and free > 0 else ""
            raise GrammarBusyError(f"too many grammars{whose} wait to be compiled; try again later")
        started = asyncio.Event()
        job = _Job(started, self._workers.submit(lambda: self._compile(spec), on_start=started.set))
        job.done.add_done_callback(partial(self._finish, key))
        self._jobs[key] = job
        return job

    def _finish(self, key: _Key, done: asyncio.Future[Grammar]) -> None:
        if done.cancelled():
            return
        del self._jobs[key]
        if done.exception() is None:  # also marks an exception as retrieved, as all waiters may be gone
            self._keep(key, done.result())

    def _keep(self, key: _Key, grammar: Grammar) -> None:
        """Caches a grammar as its tenant's most recently used one."""
        owner, spec = key
        self._alive.pop(key, None)
        self._alive[key] = grammar
        self._cache.put(key, owner, grammar, spec.num_bytes + grammar.num_bytes)

    def _make_room(self, owner: str) -> None:
        """Evicts grammars of a tenant until one more fits. Grammars in use stay alive, and are found again.

        Raises:
          GrammarBusyError: Requests use too many grammars.
        """
        own = [key for key in self._alive if key[0] == owner]
        while not (has_room := self._has_room(owner)) and own:
            self._cache.pop(own.pop(0))
        if not has_room:
            whose = " of this API key" if self._is_shared else ""
            raise GrammarBusyError(f"requests{whose} use too many different grammars; try again later")

    def _has_room(self, owner: str) -> bool:
        owners = [each for each, _ in self._alive]
        free = self._max_grammars - len(owners)
        return free > 0 and not (self._is_shared and owners.count(owner) >= free)
