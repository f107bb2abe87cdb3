"""Values of several tenants, counted in bytes. cachetools evicts by age or use, but not fairly between tenants."""

import sys
from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence


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
        self._shelves: dict[str, OrderedDict[Key, tuple[Value, int]]] = {}
        self._bytes = Counter[str]()
        self._tenants: dict[Key, str] = {}

    def __len__(self) -> int:
        return len(self._tenants)

    def get(self, key: Key) -> Value | None:
        """Returns a value; None if the key is unknown."""
        tenant = self._tenants.get(key)
        return None if tenant is None else self._shelves[tenant][key][0]

    def of(self, tenant: str) -> Sequence[Value]:
        """Returns a tenant's values, oldest first."""
        return [value for value, _ in self._shelves.get(tenant, {}).values()]

    def bytes_of(self, tenant: str) -> int:
        """Returns the total size of a tenant's entries."""
        return self._bytes[tenant]

    def count_of(self, tenant: str) -> int:
        """Returns the number of a tenant's entries."""
        return len(self._shelves.get(tenant, ()))

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
        self.pop(key)
        self._shelves.setdefault(tenant, OrderedDict())[key] = value, num_bytes
        self._tenants[key] = tenant
        self._count(tenant, num_bytes)
        return self._evict()

    def resize(self, key: Key, num_bytes: int) -> list[Value]:
        """Sets a new size of a stored value, which keeps its place; returns evicted values."""
        tenant = self._tenants[key]
        value, before = self._shelves[tenant][key]
        self._shelves[tenant][key] = value, num_bytes
        self._count(tenant, num_bytes - before)
        return self._evict()

    def pop(self, key: Key) -> Value | None:
        """Removes a value and returns it; None if the key is unknown."""
        tenant = self._tenants.get(key)
        return None if tenant is None else self._take(tenant, key)

    def _take(self, tenant: str, key: Key) -> Value:
        del self._tenants[key]
        value, num_bytes = self._shelves[tenant].pop(key)
        self._count(tenant, -num_bytes)
        if not self._shelves[tenant]:
            del self._shelves[tenant], self._bytes[tenant]
        return value

    def _evict(self) -> list[Value]:
        evicted = []
        while len(self._tenants) > self._max_entries:
            evicted.append(self._take_oldest(max(self._shelves, key=self.count_of)))
        while self.num_bytes > self._max_bytes:
            evicted.append(self._take_oldest(self.largest()))
        return evicted

    def _take_oldest(self, tenant: str) -> Value:
        return self._take(tenant, next(iter(self._shelves[tenant])))

    def _count(self, tenant: str, num_bytes: int) -> None:
        self._bytes[tenant] += num_bytes
        self.num_bytes += num_bytes
