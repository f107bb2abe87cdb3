"""Running generations by every id that a client may know: the response's own, and that of its HTTP request."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from ..tenancy.tenant import tenant
from .generation import Generation


class RunningGenerations:
    """Finds the generations to abort. Clients may choose the ids of HTTP requests, so several may share one."""

    def __init__(self) -> None:
        self._by_id: defaultdict[tuple[str, str], set[Generation]] = defaultdict(set)

    @contextmanager
    def track(self, generation: Generation, *ids: str) -> Iterator[None]:
        """Registers a generation under its ids until the end of the `with` block."""
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
        """Aborts all of the tenant's generations with an id, and returns the number of choices that were unfinished."""
        return sum(generation.abort() for generation in self._by_id.get((tenant.get(), any_id), ()))
