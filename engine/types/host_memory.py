"""The host's memory: how much there is, sizes as they are shown, arrays, and token ids as bytes."""

import contextlib
import ctypes
import os
import re
from array import array
from collections.abc import Sequence
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
