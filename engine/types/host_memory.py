"""The host's memory: its size, how tenants share it, sizes as they are shown, arrays, and token ids as bytes."""

import contextlib
import ctypes
import os
import re
import sys
from array import array
from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

_CGROUPS: Final = (
    ("sys/fs/cgroup", ("memory.max", "memory.current")),
    ("sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
)
"""Folder of each version of control groups (2, then 1), and its files of the memory's limit and usage in bytes."""


def available_memory(root: Path = Path("/")) -> int:
    """Returns the bytes that this process may still take, within the machine and its container.

    The file cache counts as available, because the system releases it on demand.

    Args:
      root: Root of the file system that holds `proc` and `sys`.
    """
    left = _left_in_container(root)
    return _left_on_machine(root) if left is None else min(_left_on_machine(root), left)


def _left_on_machine(root: Path) -> int:
    meminfo = root / "proc/meminfo"
    if meminfo.is_file() and (found := re.search(r"^MemAvailable: +(\d+) kB$", meminfo.read_text(), re.MULTILINE)):
        return 1024 * int(found[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _left_in_container(root: Path) -> int | None:
    """Returns the bytes left below the container's limit; None without a limit."""
    for folder, names in _CGROUPS:
        limit, used = (root / folder / name for name in names)
        try:
            cached = re.search(r"^(?:total_)?inactive_file (\d+)$", (root / folder / "memory.stat").read_text(), re.M)
            return int(limit.read_text()) - int(used.read_text()) + (int(cached[1]) if cached else 0)
        except (OSError, ValueError):  # the file is missing, or has the value "max"
            continue
    return None


def release_freed_memory() -> None:
    """Returns freed memory, such as the compiler's, to the system; has no effect if the C library cannot do so."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


_UNITS: Final = ("KiB", "MiB", "GiB", "TiB")


def shown_bytes(count: int) -> str:
    """Returns a number of bytes in a binary unit: "512 B", "72.0 KiB", "16.4 MiB", "4.50 GiB".

    GiB and larger units have two decimals, since the second one still stands for tens of megabytes.
    """
    if count < 1024:
        return f"{count:,} B"
    size = float(count)
    for unit in _UNITS:
        size /= 1024
        digits = 2 if unit in ("GiB", "TiB") else 1
        if round(size, digits) < 1024 or unit == _UNITS[-1]:
            break
    return f"{size:,.{digits}f} {unit}"


type HostArray = np.ndarray[Any, np.dtype[Any]]

type ArrayFormat = tuple[tuple[int, ...], str]
"""Shape and dtype name of an array."""

ID_BYTES: Final = array("i").itemsize
"""Bytes of a token id."""

_SLICE: Final = 65_536
"""Number of token ids that are packed at a time, within a millisecond or two."""


def pack_ids(*parts: Sequence[int]) -> Sequence[int]:
    """Returns the concatenated token ids of all parts, in `ID_BYTES` each. A single packed part is not copied."""
    if len(parts) == 1 and isinstance(parts[0], memoryview):
        return parts[0]
    return ids_in(b"".join(map(id_bytes, parts)))


def ids_in(data: bytes) -> Sequence[int]:
    """Returns the token ids that these bytes hold, without a copy."""
    return memoryview(data).cast("i")


def id_bytes(token_ids: Sequence[int]) -> bytes:
    """Returns token ids as bytes, `ID_BYTES` each in this machine's byte order, without a copy for the result of
    `ids_in`.
    """
    if not isinstance(token_ids, memoryview):
        packed = array("i")
        for start in range(0, len(token_ids), _SLICE):  # so that other threads can run
            packed += array("i", token_ids[start : start + _SLICE])
        return packed.tobytes()
    whole = token_ids.obj
    return whole if isinstance(whole, bytes) and len(whole) == token_ids.nbytes else token_ids.tobytes()


class TenantStore[Key: Hashable, Value]:
    """Maps keys to values and counts their bytes per tenant. Operations take constant time per entry.

    Beyond its limits, the store evicts the oldest entries of the tenant that holds the most. Caches of cachetools evict
    by age or use, but not fairly between tenants.

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
