"""Cache of compiled grammars, shared fairly between tenants."""

import weakref
from collections import OrderedDict

from .constraint import Grammar
from .spec import GrammarSpec

type Evicted = tuple[GrammarSpec, weakref.ref[Grammar]]
"""A grammar that is no longer remembered; it is still there while requests use it."""


class GrammarCache:
    """Least-recently-used cache by tenant. When it is full, the tenant that holds most loses one of its own, so no
    tenant can evict another's by asking for many.

    Args:
      max_grammars: how many there may be.
      max_bytes: how much memory they may hold together.
    """

    def __init__(self, max_grammars: int, max_bytes: int) -> None:
        self._max_grammars, self._max_bytes = max_grammars, max_bytes
        self._grammars: dict[str, OrderedDict[GrammarSpec, Grammar]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._grammars.values()))

    @property
    def num_bytes(self) -> int:
        """Memory of all of them."""
        return sum(map(self._bytes_of, self._grammars))

    def get(self, tenant: str, spec: GrammarSpec) -> Grammar | None:
        """Returns a tenant's grammar, if it is known and alive."""
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
        """Remembers a grammar, as the one asked for last."""
        self._grammars.setdefault(tenant, OrderedDict())[spec] = grammar
        while len(self) > self._max_grammars:
            self.evict(max(self._grammars, key=lambda each: len(self._grammars[each])))
        while self.num_bytes > self._max_bytes and len(self) > 1:
            self.evict(max(self._grammars, key=self._bytes_of))

    def evict(self, tenant: str) -> Evicted | None:
        """Forgets the grammar that this tenant asked for least recently, if there is one."""
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
