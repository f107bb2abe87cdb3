"""Files of checkpoints, in a folder that replicas share."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

from ....engine import RequestSnapshot, RequestSnapshotFormat, StateFileError
from .collector import StoreStats

_NUM_THREADS: Final = 2
"""Number of files that are written at a time."""

_SUFFIX: Final = ".checkpoint"

_TEMPORARY: Final = ".new-"
"""Prefix of files that are being written."""

_logger: Final = logging.getLogger(__name__)


class CheckpointFiles:
    """Reads and writes checkpoints. If a file cannot be used, the response is decoded again from its start.

    Args:
      folder: The folder. Only replicas with the same database may share it.
      key: Key that signs files; None adds a digest that only detects accidental damage.
      stats: Counts for metrics.
    """

    def __init__(self, folder: Path, key: bytes | None, stats: StoreStats) -> None:
        self._folder = folder
        self._key = key
        self._stats = stats
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="checkpoints")
        self._unused: frozenset[str] = frozenset()
        self._is_failing = False

    async def write(self, name: str, formats: RequestSnapshotFormat, checkpoint: RequestSnapshot) -> int:
        """Writes a file atomically, and returns its size in bytes; 0 if it cannot be written."""
        start = time.monotonic()
        try:
            num_bytes = await self._run(lambda: self._write(name, formats.export(checkpoint, name, self._key)))
        except OSError as error:
            self._stats.checkpoint_errors += 1
            if not self._is_failing:
                text = "checkpoints cannot be written to %s (%s): adopted responses are decoded again from their start"
                _logger.warning(text, self._folder, error.strerror)
            self._is_failing = True
            return 0
        self._is_failing = False
        self._stats.checkpoints += 1
        self._stats.checkpoint_bytes += num_bytes
        self._stats.checkpoint_seconds += time.monotonic() - start
        return num_bytes

    async def read(self, name: str, formats: RequestSnapshotFormat) -> RequestSnapshot | None:
        """Returns the checkpoint in a file; None if the file cannot be used."""
        try:
            return await self._run(lambda: formats.load(self._path(name).read_bytes(), name, self._key))
        except (OSError, StateFileError) as error:
            self._stats.checkpoint_errors += 1
            text = "checkpoint %s cannot be used (%s): the response is decoded again from its start"
            _logger.warning(text, name, error)
            return None

    async def delete(self, name: str) -> None:
        """Deletes a file, if it is there."""
        with suppress(OSError):
            await self._run(self._path(name).unlink)

    async def sweep(self, used: Collection[str]) -> None:
        """Deletes files that no response referred to at this call and at the one before.

        Args:
          used: Names of the files that running responses refer to. A file is written shortly before its response refers
            to it.
        """
        with suppress(OSError):
            names = await self._run(lambda: [path.name for path in self._folder.iterdir()])
            ours = {each for each in names if each.endswith(_SUFFIX) or each.startswith(_TEMPORARY)}
            unused = frozenset(ours - {each + _SUFFIX for each in used})
            for each in unused & self._unused:
                await self._run((self._folder / each).unlink)
            self._unused = unused

    def close(self) -> None:
        """Stops the threads, and drops queued work."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run[T](self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _write(self, name: str, data: bytes) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / (_TEMPORARY + name)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path(name))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return len(data)

    def _path(self, name: str) -> Path:
        return self._folder / (name + _SUFFIX)
