"""Hugging Face checkpoints: safetensors files, and an index if there are several.

Files are written a piece at a time; the format's own library needs all tensors in memory.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from ..model.config import read_config
from ..types.errors import CheckpointError
from ..types.host_memory import HostArray
from ..types.snapshot import DTYPES
from .format import CheckpointFormat, FoundCheckpoint, ReadRows, StoredTensor, Tensors, bytes_of

INDEX: Final = "model.safetensors.index.json"

CONFIG: Final = "config.json"


def find_files(directory: Path) -> tuple[Path, ...]:
    """Returns the checkpoint's files: the files that the index names or, without an index, all in the folder.

    Raises:
      CheckpointError: The index is invalid, or a file that it names is missing.
    """
    if not (directory / INDEX).is_file():
        return tuple(sorted(directory.glob("*.safetensors")))
    files = tuple(directory / name for name in sorted(set(_weight_map(directory / INDEX).values())))
    for file in files:
        if not os.path.isfile(file):  # False also for a name that no file can have
            raise CheckpointError(f"{file}: is missing, but {INDEX} names it; download it as well")
    return files


@contextmanager
def open_files(files: Sequence[Path]) -> Iterator[Tensors]:
    """Yields the tensors of files, which are memory-mapped and read on demand.

    Raises:
      CheckpointError: A file is missing, truncated or empty, or two files hold the same tensor.
    """
    tensors: dict[str, StoredTensor] = {}
    with ExitStack() as stack:
        for file in files:
            handle = _open(file, stack)
            if not (names := handle.keys()):
                raise CheckpointError(f"{file}: holds no tensors; download it again")
            for name in names:
                if name in tensors:
                    raise CheckpointError(f"{file}: tensor {name} is in {tensors[name].file.name} too; remove one file")
                tensors[name] = _stored(file, handle, name)
        yield tensors


def _open(file: Path, stack: ExitStack) -> Any:
    try:
        return stack.enter_context(safe_open(file, framework="numpy"))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: is not a whole safetensors file ({error}); download it again") from None


def _stored(file: Path, handle: Any, name: str) -> StoredTensor:
    rows = handle.get_slice(name)
    if rows.get_dtype() not in DTYPES:
        raise CheckpointError(
            f"{file}: tensor {name} is of type {rows.get_dtype()}, which is not supported, only {', '.join(DTYPES)}"
        )

    def open_tensor() -> ReadRows:
        def read(wanted: slice) -> HostArray:
            return rows[wanted]

        return read

    return StoredTensor(name, file, tuple(rows.get_shape()), DTYPES[rows.get_dtype()], open_tensor)


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        content = json.loads(index.read_bytes())
        weight_map = content["weight_map"]
        if all(isinstance(file, str) and Path(file).name == file for file in weight_map.values()):
            return dict(weight_map)
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        pass  # raised below
    raise CheckpointError(
        f"{index}: must be JSON with a weight_map from tensors to files of this folder; download it again"
    )


_SHARD_BYTES: Final = 4 * 10**9
"""Maximum bytes of tensors in a file."""

_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


def write_files(folder: Path, tensors: Tensors, report: Callable[[], object]) -> None:
    """Writes tensors into files of up to `_SHARD_BYTES`, with an index if there are several.

    Args:
      tensors: Tensors by name.
      report: Called after each tensor.
    """
    shards = _shards(list(tensors.values()))
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard, report)
    if len(shards) > 1:
        weight_map = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
        total = sum(t.num_bytes for t in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: Sequence[StoredTensor]) -> list[list[StoredTensor]]:
    """Groups the tensors into files of at most `_SHARD_BYTES`, except for a tensor that is larger."""
    shards: list[list[StoredTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.num_bytes > _SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.num_bytes
    return shards


def _write_file(file: Path, tensors: Sequence[StoredTensor], report: Callable[[], object]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        stop = start + tensor.num_bytes
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (start, stop),
        }
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            for _, piece in tensor.pieces():
                out.write(bytes_of(piece))
            report()


def _find(directory: Path) -> FoundCheckpoint | None:
    files = find_files(directory)
    return FoundCheckpoint(read_config(directory / CONFIG), directory, files) if files else None


SAFETENSORS: Final = CheckpointFormat(
    find=_find,
    owns=lambda weights: all(path.suffix == ".safetensors" for path in weights),
    open=lambda weights, config: open_files(weights),
)
