"""Remembered states on disk: they outlive the process, and other processes may read them.

A file is named by a hash of the model, the salt and all tokens up to its point, so that it holds no text, and is found
without a list. What a point of the grid needs lies in two: the recurrent state, and the keys and values of the last
block, which its successors share. Files appear whole, by renaming; one that is not what its digest says is as good as
missing. The folder is held below a limit by removing what was not used for the longest time.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from .config import PREFILL_BLOCK
from .errors import ConfigError, StateFileError
from .snapshot import HostArray, Snapshot, first_block
from .state_cache import PromptKey
from .state_file import pack, unpack

_MAX_PENDING: Final = 64
"""Writes that may wait; states beyond are not written, as the disk is too slow for them."""

_KEPT_SHARE: Final = 0.9
"""Of the limit, once it was reached and files were removed."""

_logger = logging.getLogger(__name__)


class StateDisk:
    """
    Attributes:
      num_bytes: of this model's files, as far as this process knows.
      num_errors: files that were broken, and writes that failed.

    Args:
      folder: made if it is missing; read only where it cannot be written to.
      model: which model's states these are; others lie beside them and are never looked at.
      window: tokens that attention looks back on.
      limit: of bytes; what is older goes first.
      key: signs the files.

    Raises:
      ConfigError: there is no such folder, and it cannot be made.
    """

    def __init__(self, folder: Path, model: str, window: int, limit: int, key: bytes | None = None) -> None:
        self._folder = folder / model
        self._model = model
        self._window = window
        self._limit = limit
        self._key = key
        self._writer = ThreadPoolExecutor(1, "states")
        self._pending: list[Future[None]] = []
        self._has_complained = False
        self.num_errors = 0
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if not folder.is_dir():
                raise ConfigError(f"state_cache_dir {folder}: cannot be made ({error.strerror})") from None
        self._is_writable = self._folder.is_dir() and os.access(self._folder, os.W_OK)
        self.num_bytes = sum(path.stat().st_size for path in self._files())

    def close(self) -> None:
        """Returns once all that was stored is on disk."""
        self._writer.shutdown()

    def find(self, prompt: PromptKey, above: int) -> Snapshot | None:
        """The longest state of a prompt that is longer than `above`: its end, or a point of the grid before it."""
        chain = self._chain(prompt)
        if len(prompt) > above and (whole := self._read_end(prompt, chain)) is not None:
            return whole
        for block in range((len(prompt) - 1) // PREFILL_BLOCK, above // PREFILL_BLOCK, -1):
            state = self._read(chain[block], "state")
            if state is not None and (window := self._read_window(chain, block * PREFILL_BLOCK)) is not None:
                return Snapshot(block * PREFILL_BLOCK, (state["h"], state["conv"]), tuple(window))
        return None

    def store(self, prompt: PromptKey, snapshots: Sequence[Snapshot]) -> None:
        """Writes states of a prompt, soon."""
        self._pending = [write for write in self._pending if not write.done()]
        if self._is_writable and len(self._pending) < _MAX_PENDING:
            self._pending.append(self._writer.submit(self._write_all, prompt, snapshots))

    def _chain(self, prompt: PromptKey) -> list[str]:
        """Of every whole block, the hash of all tokens up to its end; first that of none."""
        link = hashlib.sha256(f"{self._model}/{prompt.salt}".encode()).digest()
        chain = [link.hex()]
        for block in range(len(prompt) // PREFILL_BLOCK):
            link = hashlib.sha256(link + prompt.block(block)).digest()
            chain.append(link.hex())
        return chain

    def _read_end(self, prompt: PromptKey, chain: Sequence[str]) -> Snapshot | None:
        end = self._read(_end_name(prompt, chain[-1], len(prompt)), "end")
        if end is None:
            return None
        window = self._read_window(chain, len(prompt))
        if window is None:
            return None
        if len(prompt) % PREFILL_BLOCK:
            window.append(end["window"])
        return Snapshot(len(prompt), (end["h"], end["conv"]), tuple(window), end["hidden"])

    def _read_window(self, chain: Sequence[str], length: int) -> list[HostArray] | None:
        """The whole blocks of a window."""
        blocks = []
        for block in range(first_block(length, self._window) + 1, length // PREFILL_BLOCK + 1):
            found = self._read(chain[block], "window")
            if found is None:
                return None
            blocks.append(found["window"])
        return blocks

    def _read(self, name: str, kind: str) -> dict[str, HostArray] | None:
        path = self._path(name, kind)
        try:
            arrays, _ = unpack(path.read_bytes(), self._key)
        except FileNotFoundError:
            return None
        except (OSError, StateFileError) as error:
            self._complain(path, error)
            return None
        if self._is_writable:
            self._touch(path)
        return arrays

    def _write_all(self, prompt: PromptKey, snapshots: Sequence[Snapshot]) -> None:
        chain = self._chain(prompt)
        try:
            for snapshot in snapshots:
                for name, kind, arrays in _files_of(prompt, chain, snapshot):
                    self._write(self._path(name, kind), arrays)
            if self.num_bytes > self._limit:
                self._make_room()
        except OSError as error:
            self._complain(self._folder, error)

    def _write(self, path: Path, arrays: dict[str, HostArray]) -> None:
        if path.exists() and self._is_whole(path):
            return
        data = pack(arrays, {}, self._key)
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            file.write(data)
        Path(file.name).replace(path)
        self.num_bytes += len(data)

    def _is_whole(self, path: Path) -> bool:
        """Whoever computed a state anew did not find it, perhaps because its file is broken."""
        try:
            unpack(path.read_bytes(), self._key)
        except (OSError, StateFileError):
            return False
        return True

    def _make_room(self) -> None:
        """Oldest first; what others have removed meanwhile is gone as well."""
        found = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in self._files())
        self.num_bytes = sum(size for _, size, _ in found)
        for _, size, path in found:
            if self.num_bytes <= _KEPT_SHARE * self._limit:
                return
            path.unlink(missing_ok=True)
            self.num_bytes -= size

    def _complain(self, path: Path, error: Exception) -> None:
        """Every error counts, but only the first is told. A broken file would be met again and again."""
        self.num_errors += 1
        if not self._has_complained:
            self._has_complained = True
            _logger.warning("state cache: %s %s; further errors are only counted", path, error)
        if isinstance(error, StateFileError) and self._is_writable:
            path.unlink(missing_ok=True)

    def _touch(self, path: Path) -> None:
        try:
            os.utime(path)
        except OSError as error:
            self._complain(path, error)

    def _files(self) -> Iterator[Path]:
        return (path for path in self._folder.glob("*/*.*") if not path.name.startswith("."))

    def _path(self, name: str, kind: str) -> Path:
        return self._folder / name[:2] / f"{name[2:]}.{kind}"


def _end_name(prompt: PromptKey, link: str, length: int) -> str:
    return hashlib.sha256(f"{link} ends ".encode() + prompt.rest(length)).hexdigest()


def _files_of(
    prompt: PromptKey, chain: Sequence[str], snapshot: Snapshot
) -> Iterator[tuple[str, str, dict[str, HostArray]]]:
    """Name, kind and content of the files that a state becomes; the blocks before it were written with theirs."""
    h, conv = snapshot.recurrent
    block, rest = divmod(snapshot.length, PREFILL_BLOCK)
    if not rest:
        yield chain[block], "window", {"window": snapshot.window[-1]}
        yield chain[block], "state", {"h": h, "conv": conv}
    if snapshot.hidden is not None:
        end = {"h": h, "conv": conv, "hidden": snapshot.hidden}
        yield (
            _end_name(prompt, chain[block], snapshot.length),
            "end",
            end | ({"window": snapshot.window[-1]} if rest else {}),
        )
