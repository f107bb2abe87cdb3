"""Folder that holds the objects under a path of a bucket, and that several processes may fill at the same time."""

import fcntl
import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import BinaryIO, Final

_TOKEN_DIGITS: Final = 16
"""Number of digits in the name of a partial file that distinguish contents of an object."""


@dataclass(frozen=True, slots=True, order=True)
class BucketObject:
    """Description of an object in the listing of its bucket.

    Attributes:
      name: Path below the folder.
      size: Bytes.
      tag: Entity tag, which changes with the content.
      changed: Time of the last change, in whole seconds since 1970.
    """

    name: str
    size: int
    tag: str
    changed: int


def version_of(objects: Sequence[BucketObject]) -> str:
    """Returns a version of 12 hexadecimal digits, which depends on the objects' names and contents."""
    contents = [(each.name, each.size, each.tag) for each in sorted(objects)]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:12]


class BucketFolder:
    """Files of a folder. An object is complete once its file has its name, size and time.

    Each process writes to a separate partial file, which gets the object's name at the end. Processes that share the
    folder therefore never write to the same file, with or without locks. Locks only identify partial files of processes
    that have ended.
    """

    def __init__(self, path: Path, listing: Path) -> None:
        """Takes the path of the folder, and of a file for the last listing whose objects were all complete."""
        self.path = path
        self._listing = listing

    def has(self, each: BucketObject) -> bool:
        """Returns whether an object is complete."""
        try:
            found = (self.path / each.name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (found.st_size, int(found.st_mtime)) == (each.size, each.changed)

    def complete_version(self) -> str | None:
        """Returns the version of the last listing if all of its objects are still complete; otherwise None."""
        objects = self._remembered()
        return version_of(objects) if objects and all(map(self.has, objects)) else None

    def remember(self, objects: list[BucketObject]) -> None:
        """Stores a listing of complete objects, and removes objects that only the previous listing had."""
        last = self._remembered()
        if last == objects:
            return
        for name in {each.name for each in last} - {each.name for each in objects}:
            (self.path / name).unlink(missing_ok=True)
        self._listing.parent.mkdir(parents=True, exist_ok=True)
        partial = self._listing.with_name(f"{self._listing.name}.{uuid.uuid4().hex}.partial")
        with partial.open("w") as out:
            json.dump([astuple(each) for each in objects], out)
            out.flush()
            os.fsync(out.fileno())
        partial.rename(self._listing)

    def _remembered(self) -> list[BucketObject]:
        """Returns the last listing; empty if there is none or it cannot be read."""
        try:
            return [BucketObject(*each) for each in json.loads(self._listing.read_text())]
        except (OSError, ValueError, TypeError):
            return []

    @contextmanager
    def partial(self, each: BucketObject) -> Iterator[BinaryIO]:
        """Yields a file for the rest of an object, which begins with the bytes that any process has left.

        Unless an error occurs, the object is complete afterwards, either by this file or by another process.
        """
        with self._begin(each) as out:
            yield out
            mine = Path(out.name)
            if self.has(each):
                mine.unlink(missing_ok=True)
                return
            out.flush()
            os.fsync(out.fileno())
            os.utime(mine, (each.changed, each.changed))
            mine.rename(self.path / each.name)
        for path in self._partials(each, "?" * _TOKEN_DIGITS):
            with suppress(FileNotFoundError), path.open("r+b") as old:
                _remove_if_left(path, old)

    def _begin(self, each: BucketObject) -> BinaryIO:
        """Opens a new partial file, with a copy of the longest one of the same object."""
        (self.path / each.name).parent.mkdir(parents=True, exist_ok=True)
        token = hashlib.sha256(each.tag.encode()).hexdigest()[:_TOKEN_DIGITS]
        others = sorted(self._partials(each, token), key=_size, reverse=True)
        out = _open_new(self.path / f"{each.name}.{token}")
        for path in others:
            with suppress(FileNotFoundError), path.open("r+b") as old:
                if out.tell() == 0:
                    shutil.copyfileobj(old, out)
                _remove_if_left(path, old)
        return out

    def _partials(self, each: BucketObject, token: str) -> list[Path]:
        file = self.path / each.name
        return list(file.parent.glob(f"{glob.escape(file.name)}.{token}.{'?' * 32}.partial"))


def _open_new(start: Path) -> BinaryIO:
    """Opens a locked file with a new name. Retries if another process removes it before it is locked."""
    while True:
        path = start.with_name(f"{start.name}.{uuid.uuid4().hex}.partial")
        out = path.open("w+b")
        _lock(out, wait=True)
        if path.exists():
            return out
        out.close()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _lock(file: BinaryIO, *, wait: bool = False) -> bool:
    """Locks a file until it is closed.

    Returns False if another process has locked it, or if the file system has no locks.
    """
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_if_left(path: Path, file: BinaryIO) -> None:
    """Removes a partial file whose process has ended."""
    if _lock(file):
        path.unlink(missing_ok=True)
