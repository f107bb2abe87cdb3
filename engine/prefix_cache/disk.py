"""The prefix cache's tier on disk: states outlive the process, and other processes may read them.

A file is named by a hash of the salt and all tokens up to its point, so that it holds no text, and is found without a
list. A block boundary needs two kinds of files: the recurrent state, and the keys and values of the last blocks, which
neighbours share. Each file says under its digest which model, kind and name it is of. A file that is not what it should
be counts as an error and as missing. All files are read and written by threads of this tier, never by its caller's.
"""

import hashlib
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ..core.arrays import ArrayFormat, HostArray
from ..core.config import PREFILL_BLOCK
from ..core.errors import ConfigError, StateFileError
from ..core.snapshot import Snapshot, SnapshotFormat, first_block, is_finite
from .state_file import pack, unpack
from .state_folder import StateFolder
from .tree import PromptKey

_MAX_WRITE_BYTES: Final = 256 * 2**20
"""Maximum size of states that wait to be written. States beyond it are dropped, as the disk is too slow for them."""

_MAX_READ_BYTES: Final = 512 * 2**20
"""Maximum size of states that are being read, or were read for requests that wait for a slot."""

_READERS: Final = 2
"""Threads that read. Verifying takes longer than reading, and the machine has other work."""

_SPAN: Final = 64
"""Blocks that one marker file stands for: spans without a marker hold no states, so that only a few names of a long
prompt have to be tried."""

_HEADER_BYTES: Final = 16 * 2**10
"""Maximum size of a file's names, shapes and facts."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, slots=True)
class _StateFile:
    """A file to be written.

    Attributes:
      kind: "state", "window" or "end".
      length: number of tokens up to its point.
    """

    kind: str
    length: int
    arrays: Mapping[str, HostArray]


class StateDisk:
    """
    Attributes:
      max_fetches: number of prompts that may be searched for, or held after they were found, at a time.
      num_errors: number of files that were broken and of operations that failed.

    Args:
      folder: created if it is missing; read only if it cannot be written to.
      model: identity of the model, and of how it computes. Files of other models lie beside and are never looked at.
      formats: shapes and types of the model's snapshots.
      limit: maximum number of bytes of this model's files; the least recently used ones are evicted.
      key: signs the files.

    Raises:
      ConfigError: the folder is missing and cannot be created.
    """

    def __init__(self, folder: Path, model: str, formats: SnapshotFormat, limit: int, key: bytes | None = None) -> None:
        self._model = model
        self._formats = formats
        self._key = key
        self._lock = threading.Lock()
        self._pending_bytes = 0
        self._has_complained = False
        self.num_errors = 0
        try:
            self._folder = StateFolder(folder / model, limit, self._complain)
        except OSError as error:
            raise ConfigError(f"state_cache_dir {folder}: cannot be made ({error.strerror})") from None
        self._writer = ThreadPoolExecutor(1, "state writer")
        self._readers = ThreadPoolExecutor(_READERS, "state reader")
        self.max_fetches = min(16, max(2, _MAX_READ_BYTES // formats.max_bytes))

    @property
    def num_bytes(self) -> int:
        """Size of this model's files, as far as this process knows."""
        return self._folder.num_bytes

    def close(self) -> None:
        """Returns once all that was stored is on disk. Nobody waits for searches any more."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._writer.shutdown()

    def fetch(self, prompt: PromptKey, above: int, done: Callable[[Snapshot | None], None]) -> None:
        """Finds a state on another thread, which then calls `done`; see `find`."""
        self._readers.submit(self._fetch, prompt, above, done)

    def find(self, prompt: PromptKey, above: int) -> Snapshot | None:
        """Returns the longest state of a prompt with more than `above` tokens: its end, or a block boundary before."""
        if len(prompt) > above and (whole := self._read_end(prompt)) is not None:
            return whole
        missing: set[int] = set()
        for block in self._blocks(prompt, above):
            if (found := self._read_boundary(prompt, block, missing)) is not None:
                return found
        return None

    def store(self, prompt: PromptKey, snapshots: Sequence[Snapshot]) -> None:
        """Writes states of a prompt on another thread, unless too many wait already."""
        if not self._folder.is_writable:
            return
        files = [file for snapshot in snapshots for file in _files_of(snapshot)]
        size = len(prompt.tokens) + sum(array.nbytes for file in files for array in file.arrays.values())
        with self._lock:
            is_full = self._pending_bytes > 0 and self._pending_bytes + size > _MAX_WRITE_BYTES
            self._pending_bytes += 0 if is_full else size
        if is_full:
            self._complain(self._folder.root, StateFileError("is too slow; some states are not written"))
        else:
            self._writer.submit(self._write_all, prompt, files, size)

    def _fetch(self, prompt: PromptKey, above: int, done: Callable[[Snapshot | None], None]) -> None:
        found = None
        try:
            found = self.find(prompt, above)
        except Exception as error:  # whatever a file makes a library raise; its request can do without
            self._complain(self._folder.root, error)
        done(found)

    def _blocks(self, prompt: PromptKey, above: int) -> Iterator[int]:
        """Yields block boundaries whose files exist, the last one first."""
        first, last = above // PREFILL_BLOCK + 1, (len(prompt) - 1) // PREFILL_BLOCK
        for span in range((last - 1) // _SPAN, (first - 1) // _SPAN - 1, -1) if first <= last else ():
            start = span * _SPAN
            if start and not self._folder.exists(prompt.link(start).hex(), "span"):
                continue
            for block in range(min(last, start + _SPAN), max(first, start + 1) - 1, -1):
                if self._folder.exists(prompt.link(block).hex(), "state"):
                    yield block

    def _read_end(self, prompt: PromptKey) -> Snapshot | None:
        length = len(prompt)
        if (end := self._read(prompt, "end", length)) is None or (window := self._read_window(prompt, length)) is None:
            return None
        self._mark(prompt, length)
        blocks = (*window, end["window"]) if length % PREFILL_BLOCK else tuple(window)
        return Snapshot(length, (end["h"], end["conv"]), blocks, end["hidden"])

    def _read_boundary(self, prompt: PromptKey, block: int, missing: set[int]) -> Snapshot | None:
        """
        Args:
          missing: blocks whose window is missing, as far as that is known; more are added.
        """
        length = block * PREFILL_BLOCK
        needed = range(first_block(length, self._formats.window) + 1, block + 1)
        for other in needed:
            if other not in missing and not self._folder.exists(prompt.link(other).hex(), "window"):
                missing.add(other)
        if not missing.isdisjoint(needed) or (state := self._read(prompt, "state", length)) is None:
            return None
        if (window := self._read_window(prompt, length, missing)) is None:
            return None
        self._mark(prompt, length)
        return Snapshot(length, (state["h"], state["conv"]), tuple(window))

    def _read_window(self, prompt: PromptKey, length: int, missing: set[int] | None = None) -> list[HostArray] | None:
        """Returns the whole blocks of a window, or None if one is missing."""
        blocks = []
        for block in range(first_block(length, self._formats.window) + 1, length // PREFILL_BLOCK + 1):
            if (found := self._read(prompt, "window", block * PREFILL_BLOCK)) is None:
                if missing is not None:
                    missing.add(block)
                return None
            blocks.append(found["window"])
        return blocks

    def _read(self, prompt: PromptKey, kind: str, length: int) -> dict[str, HostArray] | None:
        """Returns a file's arrays; None if it is missing or broken."""
        name = _name(prompt, kind, length)
        try:
            arrays = self._load(name, kind, length)
        except (OSError, StateFileError) as error:
            self._complain(self._folder.path(name, kind), error)
            if isinstance(error, StateFileError):  # it would be met again and again
                self._folder.remove(name, kind)
            return None
        if arrays is not None:
            self._folder.touch(name, kind)
        return arrays

    def _load(self, name: str, kind: str, length: int) -> dict[str, HostArray] | None:
        """Returns a file's arrays if they are what they should be; None if there is no such file.

        Raises:
          OSError, StateFileError: it cannot be read, or is no such file.
        """
        formats = self._formats_of(kind, length)
        size = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in formats.values())
        data = self._folder.read(name, kind, size + _HEADER_BYTES)
        if data is None:
            return None
        arrays, facts = unpack(data, self._key)
        for fact, expected in self._facts(name, kind).items():
            if facts.get(fact) != expected:
                raise StateFileError(f"has the {fact} {facts.get(fact)!r}, expected {expected!r}")
        found = {name: (array.shape, array.dtype.name) for name, array in arrays.items()}
        if found != formats:
            raise StateFileError(f"holds {found}, expected {formats}")
        if not all(map(is_finite, arrays.values())):
            raise StateFileError("holds values that are not finite")
        return arrays

    def _formats_of(self, kind: str, length: int) -> dict[str, ArrayFormat]:
        """Returns shapes and types of what a file holds."""
        formats, rest = self._formats, length % PREFILL_BLOCK
        shape, dtype = formats.token
        window: dict[str, ArrayFormat] = {"window": ((rest or PREFILL_BLOCK, *shape), dtype)}
        recurrent = {"h": formats.h, "conv": formats.conv}
        if kind == "window":
            return window
        if kind == "state":
            return recurrent
        return recurrent | {"hidden": formats.hidden} | (window if rest else {})

    def _facts(self, name: str, kind: str) -> dict[str, str]:
        """Returns what a file says it is of; the name stands for the salt and all tokens."""
        return {"model": self._model, "kind": kind, "name": name}

    def _write_all(self, prompt: PromptKey, files: Sequence[_StateFile], size: int) -> None:
        try:
            for file in files:
                self._write(prompt, file)
            for length in sorted({file.length for file in files}):
                self._mark(prompt, length)
        finally:
            with self._lock:
                self._pending_bytes -= size

    def _write(self, prompt: PromptKey, file: _StateFile) -> None:
        name = _name(prompt, file.kind, file.length)
        try:
            if not all(map(is_finite, file.arrays.values())):
                raise StateFileError("would hold values that are not finite; it is not written")
            if not self._is_whole(name, file):
                self._folder.write(name, file.kind, pack(file.arrays, self._facts(name, file.kind), self._key))
        except Exception as error:  # the states that follow may still be written
            self._complain(self._folder.path(name, file.kind), error)

    def _mark(self, prompt: PromptKey, length: int) -> None:
        """Notes that a state was written or used, for all who search the span of blocks that it lies in."""
        start = (length // PREFILL_BLOCK - 1) // _SPAN * _SPAN
        if length % PREFILL_BLOCK or start <= 0 or not self._folder.is_writable:
            return
        name = prompt.link(start).hex()
        try:
            self._folder.mark(name, "span")
        except OSError as error:
            self._complain(self._folder.path(name, "span"), error)

    def _is_whole(self, name: str, file: _StateFile) -> bool:
        """Whoever computed a state anew did not find it, perhaps because its file is broken."""
        try:
            return self._load(name, file.kind, file.length) is not None
        except (OSError, StateFileError):
            return False

    def _complain(self, path: Path, error: Exception) -> None:
        """Counts an error; only the first one is logged."""
        with self._lock:
            self.num_errors += 1
            is_first, self._has_complained = not self._has_complained, True
        if is_first:
            _logger.warning("state cache: %s %s; further errors are only counted", path, error)


def _name(prompt: PromptKey, kind: str, length: int) -> str:
    """Returns the name of a prompt's file, without its kind."""
    link = prompt.link(length // PREFILL_BLOCK)
    return link.hex() if kind != "end" else hashlib.sha256(link + b" ends " + prompt.rest(length)).hexdigest()


def _files_of(snapshot: Snapshot) -> Iterator[_StateFile]:
    """Yields the files that a state becomes; the blocks before it were written with theirs."""
    length, (h, conv), last = snapshot.length, snapshot.recurrent, snapshot.window[-1]
    rest = length % PREFILL_BLOCK
    if len(last) != (rest or PREFILL_BLOCK):  # restored from a window that began in the middle of this block
        return
    if not rest:
        yield _StateFile("window", length, {"window": last})
        yield _StateFile("state", length, {"h": h, "conv": conv})
    if snapshot.hidden is not None:
        end = {"h": h, "conv": conv, "hidden": snapshot.hidden}
        yield _StateFile("end", length, end | ({"window": last} if rest else {}))
