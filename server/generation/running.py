"""Who runs now, by every id that a client may know: the answer's own, and that of its HTTP request."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from ..tenancy.tenant import tenant
from .generation import Generation


class RunningGenerations:
    """Ids of HTTP requests may be the clients' own, so one may stand for several generations."""

    def __init__(self) -> None:
        self._by_id: defaultdict[tuple[str, str], set[Generation]] = defaultdict(set)

    @contextmanager
    def track(self, generation: Generation, *ids: str) -> Iterator[None]:
        """Knows the generation until the end of the `with` block."""
        keys = [(tenant.get(), each) for each in ids]
        for each in keys:
            self._by_id[each].add(generation)
        try:
            yield
        finally:
            for each in keys:
                self._by_id[each].discard(generation)
                if not self._by_id[each]:
                    del self._by_id[each]

    def abort(self, any_id: str) -> int:
        """Ends all of this tenant's that the id stands for; gives the number of choices that were alive. Unknown ids
        are none."""
        return sum(generation.abort() for generation in self._by_id.get((tenant.get(), any_id), ()))
