"""Disk tier of the prefix cache: snapshots outlive the process, and other processes may read them.

A file is named by a hash of the salt and of all tokens of its prefix. It therefore contains no text, and is found
without an index. A snapshot at a block boundary needs two kinds of files: the recurrent state, and the keys and values
of the last blocks, which neighbouring snapshots share. Each file states its model, kind and name under its digest. A
file that is not valid counts as an error and as missing. Threads of this tier read and write all files; its caller
never does.

Several processes write, read and remove files of the folder, each at any time. Files appear atomically, by renaming,
and the folder is kept below a limit by evicting the least recently used files. If another process removes a file during
an operation, the result is as if the file had been removed before. What a process that crashed has not finished writing
is evicted in its turn. diskcache keeps its index in SQLite, which must not
be shared over a network file system.
"""

import hashlib
import logging
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from ..types.config import PREFILL_BLOCK
from ..types.errors import ConfigError, StateFileError
from ..types.host_memory import ArrayFormat, HostArray
from ..types.snapshot import Snapshot, SnapshotFormat, first_block, is_finite, num_bytes, pack, unpack
from .cache import PrefixKey

_MAX_WRITE_BYTES: Final = 256 * 2**20
"""Maximum size of snapshots that wait to be written. Further ones are dropped, since the disk is too slow for them."""

_MAX_READ_BYTES: Final = 512 * 2**20
"""Maximum size of snapshots that are being read, or were read for requests that wait for a slot."""

_READERS: Final = 2
"""Number of threads that read. Verifying takes longer than reading, and the CPU has other work."""

_SPAN: Final = 64
"""Number of blocks that one marker file covers. Spans without a marker have no snapshots, so only a few names of a long
prompt need to be tried."""

_HEADER_BYTES: Final = 16 * 2**10
"""Maximum size of a file's header."""

_KEPT_SHARE: Final = 0.9
"""Share of the limit to which eviction reduces the folder."""

_RECOUNT_SHARE: Final = 1 / 16
"""Share of the limit that this process writes before it measures the folder again, since others also write to it."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, slots=True)
class _StateFile:
    """A file to be written.

    Attributes:
      kind: "state", "window" or "end".
      length: Number of tokens of its prefix.
    """

    kind: str
    length: int
    arrays: Mapping[str, HostArray]


def make_folder(folder: Path) -> None:
    """Creates the folder of a `DiskTier`, before slow steps.

    Raises:
      ConfigError: The folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"state_cache_dir {folder}: cannot be made ({error.strerror})") from None


class DiskTier:
    """Snapshots in a folder of files; see `CacheTier`.

    Attributes:
      max_fetches: Maximum number of keys whose fetches are running, or whose results are held, at a time.
      num_errors: Number of invalid files and failed operations.

    Args:
      folder: Created if it is missing; only read if it is not writable.
      model: Identity of the model, and of how it computes. Files of other models are in separate folders.
      formats: Shapes and dtypes of the model's snapshots.
      limit: Maximum number of bytes of this model's files; the least recently used ones are evicted.
      key: Key that signs the files.

    Raises:
      ConfigError: The folder is missing and cannot be created.
    """

    def __init__(self, folder: Path, model: str, formats: SnapshotFormat, limit: int, key: bytes | None = None) -> None:
        self._model = model
        self._formats = formats
        self._sign_key = key
        self._lock = threading.Lock()
        self._pending_bytes = 0
        self._has_logged = False
        self.num_errors = 0
        make_folder(folder)
        self._folder = CacheFolder(folder / model, limit, self._report_error)
        self._writer = ThreadPoolExecutor(1, "state writer")
        self._readers = ThreadPoolExecutor(_READERS, "state reader")
        self.max_fetches = min(16, max(2, _MAX_READ_BYTES // formats.max_bytes))

    @property
    def num_bytes(self) -> int:
        """Size of this model's files known to this process."""
        return self._folder.num_bytes

    def close(self) -> None:
        """Waits until every stored snapshot is on disk. Pending fetches are cancelled."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._writer.shutdown()

    def fetch(self, key: PrefixKey, above: int, done: Callable[[Snapshot | None], None]) -> None:
        """Runs `find` on another thread, which then calls `done` with the result."""
        self._readers.submit(self._fetch, key, above, done)

    def find(self, key: PrefixKey, above: int) -> Snapshot | None:
        """Returns the longest snapshot with more than `above` tokens: at the key's end, or at a block boundary."""
        if len(key) > above and (end := self._read_snapshot(key, "end", len(key))) is not None:
            return end
        found = (self._read_snapshot(key, "state", length) for length in self._boundaries(key, above))
        return next((snapshot for snapshot in found if snapshot is not None), None)

    def store(self, key: PrefixKey, snapshots: Sequence[Snapshot]) -> None:
        """Writes snapshots on another thread, unless too many are already waiting."""
        if not self._folder.is_writable:
            return
        files = [file for snapshot in snapshots for file in _files_of(snapshot, self._formats)]
        size = len(key.tokens) + sum(array.nbytes for file in files for array in file.arrays.values())
        with self._lock:
            is_full = self._pending_bytes > 0 and self._pending_bytes + size > _MAX_WRITE_BYTES
            self._pending_bytes += 0 if is_full else size
        if is_full:
            self._report_error(self._folder.root, StateFileError("is too slow; some states are not written"))
        else:
            self._writer.submit(self._write_all, key, files, size)

    def _fetch(self, key: PrefixKey, above: int, done: Callable[[Snapshot | None], None]) -> None:
        found = None
        try:
            found = self.find(key, above)
        except Exception as error:  # a library may raise anything for a file, and the request can continue without it
            self._report_error(self._folder.root, error)
        done(found)

    def _boundaries(self, key: PrefixKey, above: int) -> Iterator[int]:
        """Yields the lengths of prefixes up to a block boundary whose states may exist, longest first."""
        first, last = above // PREFILL_BLOCK + 1, (len(key) - 1) // PREFILL_BLOCK
        for span in range((last - 1) // _SPAN, (first - 1) // _SPAN - 1, -1) if first <= last else ():
            start = span * _SPAN
            if start and not self._folder.exists(_name(key, "span", start * PREFILL_BLOCK)):
                continue
            for block in range(min(last, start + _SPAN), max(first, start + 1) - 1, -1):
                yield block * PREFILL_BLOCK

    def _read_snapshot(self, key: PrefixKey, kind: str, length: int) -> Snapshot | None:
        """Returns the snapshot of a "state" at a block boundary, or of an "end"; None if a file is missing.

        The oldest block of the window is read first, since it is the first to be evicted.
        """
        if not self._folder.exists(_name(key, kind, length)):
            return None
        blocks = range(first_block(length, self._formats.window) + 1, length // PREFILL_BLOCK + 1)
        files = []
        for part in (*(("window", block * PREFILL_BLOCK) for block in blocks), (kind, length)):
            if (file := self._read(key, *part)) is None:
                return None
            files.append(file)
        self._touch_span(key, length)
        window = tuple(file["window"] for file in files if "window" in file)
        return Snapshot(length, self._formats.recurrent_of(files[-1]), window, files[-1].get("hidden"))

    def _read(self, key: PrefixKey, kind: str, length: int) -> dict[str, HostArray] | None:
        """Returns a file's arrays; None if the file is missing or not valid."""
        name = _name(key, kind, length)
        try:
            arrays = self._load(name, kind, length)
        except (OSError, StateFileError) as error:
            self._report_error(self._folder.path(name), error)
            if isinstance(error, StateFileError):  # otherwise every search would read it again
                self._folder.remove(name)
            return None
        if arrays is not None:
            self._folder.touch(name)
        return arrays

    def _load(self, name: str, kind: str, length: int) -> dict[str, HostArray] | None:
        """Returns a file's arrays; None if the file does not exist.

        Raises:
          OSError: The file cannot be read.
          StateFileError: The file is not valid.
        """
        formats = self._formats_of(kind, length)
        data = self._folder.read(name, num_bytes(*formats.values()) + _HEADER_BYTES)
        if data is None:
            return None
        arrays, facts = unpack(data, self._sign_key)
        for fact, expected in self._facts(name).items():
            if facts.get(fact) != expected:
                raise StateFileError(f"has the {fact} {facts.get(fact)!r}, expected {expected!r}")
        found = {name: (array.shape, array.dtype.name) for name, array in arrays.items()}
        if found != formats:
            raise StateFileError(f"holds {found}, expected {formats}")
        if not all(map(is_finite, arrays.values())):
            raise StateFileError("holds values that are not finite")
        return arrays

    def _formats_of(self, kind: str, length: int) -> dict[str, ArrayFormat]:
        """Returns the formats of the arrays that a file must contain."""
        formats, rest = self._formats, length % PREFILL_BLOCK
        window: dict[str, ArrayFormat] = {"window": formats.tokens(rest or PREFILL_BLOCK)}
        recurrent = dict(formats.recurrent)
        if kind == "window":
            return window
        if kind == "state":
            return recurrent
        return recurrent | {"hidden": formats.hidden} | (window if rest else {})

    def _facts(self, name: str) -> dict[str, str]:
        """Returns the metadata that binds a file to its place. The name stands for the salt and all tokens."""
        name, _, kind = name.partition(".")
        return {"model": self._model, "kind": kind, "name": name}

    def _write_all(self, key: PrefixKey, files: Sequence[_StateFile], size: int) -> None:
        try:
            for file in files:
                name = _name(key, file.kind, file.length)
                try:
                    self._folder.write(name, pack(file.arrays, self._facts(name), self._sign_key))
                except Exception as error:  # later files may still succeed
                    self._report_error(self._folder.path(name), error)
            for length in sorted({file.length for file in files}):
                self._touch_span(key, length)
        finally:
            with self._lock:
                self._pending_bytes -= size

    def _touch_span(self, key: PrefixKey, length: int) -> None:
        """Touches the marker file of a snapshot's span, when the snapshot was written or used."""
        start = (length // PREFILL_BLOCK - 1) // _SPAN * _SPAN
        if not length % PREFILL_BLOCK and start > 0:
            self._folder.touch(_name(key, "span", start * PREFILL_BLOCK), create=True)

    def _report_error(self, path: Path, error: Exception) -> None:
        """Counts an error, and logs the first one."""
        with self._lock:
            self.num_errors += 1
            is_first, self._has_logged = not self._has_logged, True
        if is_first:
            _logger.warning("state cache: %s %s; further errors are only counted", path, error)


def _name(key: PrefixKey, kind: str, length: int) -> str:
    link = key.block_hash(length // PREFILL_BLOCK)
    if kind == "end":
        link = hashlib.sha256(link + b" ends " + key.partial_block(length)).digest()
    return f"{link.hex()}.{kind}"


def _files_of(snapshot: Snapshot, formats: SnapshotFormat) -> Iterator[_StateFile]:
    """Yields the files of a snapshot; earlier blocks of its window belong to earlier snapshots."""
    length, recurrent, last = snapshot.length, formats.named(snapshot), snapshot.window[-1]
    rest = length % PREFILL_BLOCK
    if len(last) != (rest or PREFILL_BLOCK):  # restored from a slot that held only part of this block
        return
    if not rest:
        yield _StateFile("window", length, {"window": last})
        yield _StateFile("state", length, recurrent)
    if snapshot.hidden is not None:
        end = recurrent | {"hidden": snapshot.hidden}
        yield _StateFile("end", length, end | ({"window": last} if rest else {}))


class _File(NamedTuple):
    """One file. Files sort in order of eviction. Of files with the same time of use, empty ones come last."""

    used_ns: int
    is_empty: bool
    path: str
    num_bytes: int


class CacheFolder:
    """Files by name, within a limit of bytes.

    Attributes:
      is_writable: Whether files can be added and removed.
      num_bytes: Size of all files known to this process.

    Args:
      path: The folder, in one that exists; created if it is missing, and again if it disappears.
      limit: Maximum number of bytes.
      on_error: Called with a path and a tolerated error, such as a file that cannot be removed.
    """

    def __init__(self, path: Path, limit: int, on_error: Callable[[Path, Exception], None]) -> None:
        self.root = path
        self._limit = limit
        self._on_error = on_error
        self._num_uncounted = 0
        with suppress(OSError):
            path.mkdir(exist_ok=True)
        self.is_writable = path.is_dir() and os.access(path, os.W_OK)
        self.num_bytes = sum(file.num_bytes for file in self._files())

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """Returns a file's content; None if the file does not exist.

        Raises:
          OSError: The file cannot be read.
          StateFileError: The file is larger than `max_bytes`, or not a regular file.
        """
        try:  # a pipe of this name must not block the reader
            file = os.open(self.path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            facts = os.fstat(file)
            if not stat.S_ISREG(facts.st_mode):
                raise StateFileError("is no regular file")
            if facts.st_size > max_bytes:
                raise StateFileError(f"has {facts.st_size} bytes, expected at most {max_bytes}")
            with open(file, "rb", closefd=False) as stream:
                return stream.read(max_bytes)
        finally:
            os.close(file)

    def write(self, name: str, data: bytes) -> None:
        """Adds or replaces a file, then evicts others if the limit was reached.

        Raises:
          OSError: The file cannot be written; no part of it remains.
        """
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        try:
            with open(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        self.num_bytes += len(data)
        self._num_uncounted += len(data)
        if self.num_bytes > self._limit or self._num_uncounted > _RECOUNT_SHARE * self._limit:
            self._make_room()

    def exists(self, name: str) -> bool:
        """Returns whether the file exists."""
        return os.path.exists(self.path(name))

    def touch(self, name: str, *, create: bool = False) -> None:
        """Marks a file as used, if the folder can be changed.

        Args:
          create: Whether to add an empty file if there is none.
        """
        path = self.path(name)
        try:
            if create and self.is_writable:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            elif self.is_writable:
                os.utime(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._on_error(path, error)

    def remove(self, name: str) -> None:
        """Removes a file, if it exists and can be removed."""
        if self.is_writable:
            self._unlink(self.path(name))

    def path(self, name: str) -> Path:
        """Returns the path of a file."""
        return self.root / name[:2] / name[2:]

    def _make_room(self) -> None:
        """Measures the folder, and evicts the least recently used files if it is above its limit."""
        self._num_uncounted = 0
        files = sorted(self._files())
        self.num_bytes = sum(file.num_bytes for file in files)
        left = _KEPT_SHARE * self._limit if self.num_bytes > self._limit else self._limit
        for file in files:
            if self.num_bytes <= left:
                return
            if self._unlink(Path(file.path)):
                self.num_bytes -= file.num_bytes

    def _unlink(self, path: Path) -> bool:
        """Removes a file, and returns whether it is gone."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._on_error(path, error)
            return False
        return True

    def _files(self) -> Iterator[_File]:
        """Yields all files, except those that are removed during the iteration or cannot be listed."""
        for folder in _entries(self.root):
            for entry in _entries(folder.path):
                with suppress(OSError):
                    facts = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(facts.st_mode):
                        yield _File(facts.st_mtime_ns, not facts.st_size, entry.path, facts.st_size)


def _entries(folder: Path | str) -> list["os.DirEntry[str]"]:
    with suppress(OSError), os.scandir(folder) as entries:
        return list(entries)
    return []
