"""Values of several tenants, counted in bytes. cachetools evicts by age or use, but not fairly between tenants."""

import sys
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class _Entry[Value]:
    """A value and its size."""

    value: Value
    num_bytes: int


@dataclass(slots=True)
class _Shelf[Key: Hashable, Value]:
    """One tenant's entries, oldest first.

    Attributes:
      num_bytes: Total size of the entries.
    """

    entries: OrderedDict[Key, _Entry[Value]] = field(default_factory=OrderedDict)
    num_bytes: int = 0


class TenantStore[Key: Hashable, Value]:
    """Maps keys to values and counts their bytes per tenant. Operations take constant time per entry.

    Beyond its limits, the store evicts the oldest entries of the tenant that holds the most.

    Args:
      max_entries: Maximum number of entries.
      max_bytes: Maximum total size.

    Attributes:
      num_bytes: Total size of all entries.
    """

    def __init__(self, max_entries: int = sys.maxsize, max_bytes: int = sys.maxsize) -> None:
        self.num_bytes = 0
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._shelves: dict[str, _Shelf[Key, Value]] = {}
        self._tenants: dict[Key, str] = {}

    def __len__(self) -> int:
        return len(self._tenants)

    def get(self, key: Key) -> Value | None:
        """Returns a value; None if the key is unknown."""
        tenant = self._tenants.get(key)
        return None if tenant is None else self._shelves[tenant].entries[key].value

    def of(self, tenant: str) -> Sequence[Value]:
        """Returns a tenant's values, oldest first."""
        shelf = self._shelves.get(tenant)
        return () if shelf is None else [entry.value for entry in shelf.entries.values()]

    def bytes_of(self, tenant: str) -> int:
        """Returns the total size of a tenant's entries."""
        shelf = self._shelves.get(tenant)
        return 0 if shelf is None else shelf.num_bytes

    def count_of(self, tenant: str) -> int:
        """Returns the number of a tenant's entries."""
        shelf = self._shelves.get(tenant)
        return 0 if shelf is None else len(shelf.entries)

    def has_room(self, tenant: str, num_bytes: int, limit: int, *, is_shared: bool) -> bool:
        """Returns whether a tenant may add an entry.

        Args:
          num_bytes: Size of the entry.
          limit: Maximum total size.
          is_shared: Whether there are several tenants, of which none may hold more than it leaves free.
        """
        free = limit - self.num_bytes
        return num_bytes <= free and not (is_shared and self.bytes_of(tenant) + num_bytes > free)

    def largest(self) -> str:
        """Returns the tenant that holds the most bytes.

        Raises:
          ValueError: The store is empty.
        """
        return max(self._shelves, key=self.bytes_of)

    def put(self, key: Key, tenant: str, value: Value, num_bytes: int) -> list[Value]:
        """Stores a value as the tenant's newest, and replaces an earlier one with the same key.

        Returns:
          Evicted values.
        """
        if key in self._tenants:
            self.pop(key)
        shelf = self._shelves.setdefault(tenant, _Shelf())
        shelf.entries[key] = _Entry(value, num_bytes)
        self._tenants[key] = tenant
        self._count(shelf, num_bytes)
        return self._evict()

    def resize(self, key: Key, num_bytes: int) -> list[Value]:
        """Sets a new size of a stored value, which keeps its place; returns evicted values."""
        shelf = self._shelves[self._tenants[key]]
        before = shelf.entries[key]
        shelf.entries[key] = _Entry(before.value, num_bytes)
        self._count(shelf, num_bytes - before.num_bytes)
        return self._evict()

    def pop(self, key: Key) -> Value | None:
        """Removes a value and returns it; None if the key is unknown."""
        tenant = self._tenants.pop(key, None)
        if tenant is None:
            return None
        shelf = self._shelves[tenant]
        entry = shelf.entries.pop(key)
        self._count(shelf, -entry.num_bytes)
        if not shelf.entries:
            del self._shelves[tenant]
        return entry.value

    def _evict(self) -> list[Value]:
        evicted = []
        while len(self._tenants) > self._max_entries:
            evicted.append(self._pop_oldest(max(self._shelves.values(), key=lambda shelf: len(shelf.entries))))
        while self.num_bytes > self._max_bytes:
            evicted.append(self._pop_oldest(max(self._shelves.values(), key=lambda shelf: shelf.num_bytes)))
        return evicted

    def _pop_oldest(self, shelf: _Shelf[Key, Value]) -> Value:
        key = next(iter(shelf.entries))
        value = shelf.entries[key].value
        self.pop(key)
        return value

    def _count(self, shelf: _Shelf[Key, Value], num_bytes: int) -> None:
        shelf.num_bytes += num_bytes
        self.num_bytes += num_bytes
