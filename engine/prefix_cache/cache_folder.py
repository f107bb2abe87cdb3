"""A folder of files that several processes write to, read from and remove from, each at any time.

Files appear atomically, by renaming, and the folder is kept below a limit by evicting the least recently used files. If
another process removes a file during an operation, the result is as if the file had been removed before. diskcache
keeps its index in SQLite, which must not be shared over a network file system.
"""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from ..types.errors import StateFileError

_TEMPORARY: Final = ".new-"
"""Prefix of files that are being written."""

_MAX_TEMPORARY_AGE_NS: Final = 3600 * 10**9
"""Age after which a temporary file is considered a leftover of a process that crashed."""

_KEPT_SHARE: Final = 0.9
"""Share of the limit to which eviction reduces the folder."""

_RECOUNT_SHARE: Final = 1 / 16
"""Share of the limit that this process writes before it measures the folder again, since others also write to it."""


class _File(NamedTuple):
    """One file. Files sort in order of eviction. Of files with the same time of use, empty ones come last."""

    used_ns: int
    is_empty: bool
    path: str
    num_bytes: int

    @property
    def is_temporary(self) -> bool:
        return os.path.basename(self.path).startswith(".")


class CacheFolder:
    """Files by name and kind, within a limit of bytes.

    Attributes:
      is_writable: Whether files can be added and removed.
      num_bytes: Size of all files known to this process.

    Args:
      path: The folder; created if it is missing, and again if it disappears.
      limit: Maximum number of bytes.
      on_error: Called with a path and a tolerated error, such as a file that cannot be removed.

    Raises:
      OSError: The folder is missing and cannot be created.
    """

    def __init__(self, path: Path, limit: int, on_error: Callable[[Path, Exception], None]) -> None:
        self.root = path
        self._limit = limit
        self._on_error = on_error
        self._num_uncounted = 0
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError:
            if not path.parent.is_dir():
                raise
        self.is_writable = path.is_dir() and os.access(path, os.W_OK)
        files = list(self._files())
        self.num_bytes = sum(file.num_bytes for file in files)
        if self.is_writable and any(file.is_temporary for file in files):
            self._remove_leftovers(files, self._now_ns())

    def read(self, name: str, kind: str, max_bytes: int) -> bytes | None:
        """Returns a file's content; None if the file does not exist.

        Raises:
          OSError: The file cannot be read.
          StateFileError: The file is larger than `max_bytes`, or not a regular file.
        """
        try:  # a pipe of this name must not block the reader
            file = os.open(self.path(name, kind), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
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

    def write(self, name: str, kind: str, data: bytes) -> None:
        """Adds or replaces a file, then evicts others if the limit was reached.

        Raises:
          OSError: The file cannot be written; no part of it remains.
        """
        path = self.path(name, kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY)
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
            self._make_room(path)

    def touch_or_create(self, name: str, kind: str) -> None:
        """Adds an empty file, or marks it as used.

        Raises:
          OSError: The file cannot be written.
        """
        path = self.path(name, kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def exists(self, name: str, kind: str) -> bool:
        """Returns whether the file exists."""
        path = self.path(name, kind)
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            self._on_error(path, error)
            return False
        return True

    def touch(self, name: str, kind: str) -> None:
        """Marks a file as used."""
        if not self.is_writable:
            return
        path = self.path(name, kind)
        try:
            os.utime(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._on_error(path, error)

    def remove(self, name: str, kind: str) -> None:
        """Removes a file, if it exists and can be removed."""
        if self.is_writable:
            self._unlink(self.path(name, kind))

    def path(self, name: str, kind: str) -> Path:
        """Returns the path of a file."""
        return self.root / name[:2] / f"{name[2:]}.{kind}"

    def _make_room(self, newest: Path) -> None:
        """Measures the folder, and evicts the least recently used files if it is above its limit.

        Args:
          newest: A file that was just written; its time is the current one by the clock of the file system.
        """
        self._num_uncounted = 0
        files = sorted(self._files())
        self.num_bytes = sum(file.num_bytes for file in files)
        with suppress(OSError):
            self._remove_leftovers(files, newest.stat().st_mtime_ns)
        if self.num_bytes <= self._limit:
            return
        for file in files:
            if self.num_bytes <= _KEPT_SHARE * self._limit:
                return
            if not file.is_temporary and self._unlink(Path(file.path)):
                self.num_bytes -= file.num_bytes

    def _remove_leftovers(self, files: list[_File], now_ns: int) -> None:
        """Removes old temporary files; another process may still be writing to younger ones."""
        for file in files:
            if file.is_temporary and now_ns - file.used_ns > _MAX_TEMPORARY_AGE_NS and self._unlink(Path(file.path)):
                self.num_bytes -= file.num_bytes

    def _now_ns(self) -> int:
        """Returns the time by the clock of the file system, which may be another machine's; 0 if that is unknown."""
        try:
            with tempfile.TemporaryFile(dir=self.root) as file:
                return os.fstat(file.fileno()).st_mtime_ns
        except OSError as error:
            self._on_error(self.root, error)
            return 0

    def _unlink(self, path: Path) -> bool:
        """Removes a file, and returns whether it is gone."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._on_error(path, error)
            return False
        return True

    def _files(self) -> Iterator[_File]:
        """Yields all files, except those that are removed during the iteration."""
        for folder in self._entries(self.root):
            for entry in self._entries(Path(folder.path)):
                try:
                    facts = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    self._on_error(Path(entry.path), error)
                    continue
                if stat.S_ISREG(facts.st_mode):
                    yield _File(facts.st_mtime_ns, not facts.st_size, entry.path, facts.st_size)

    def _entries(self, folder: Path) -> list["os.DirEntry[str]"]:
        try:
            with os.scandir(folder) as entries:
                return list(entries)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self._on_error(folder, error)
            return []
