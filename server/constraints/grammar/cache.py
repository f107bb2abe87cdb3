"""Cache of compiled grammars, shared fairly between tenants. cachetools has no caches with entries of tenants."""

import weakref
from collections import OrderedDict

from .constraint import Grammar
from .spec import GrammarSpec

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
