"""Safetensors files in the Hugging Face layout: which of a folder's belong to the checkpoint, what is in them, and how
they are written a piece at a time, as the format's own library would want all tensors in memory."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open

from ..core.arrays import HostArray
from ..core.errors import CheckpointError
from .tensors import BFLOAT16, ReadRows, StoredTensor, Tensors, bytes_of

INDEX: Final = "model.safetensors.index.json"

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "F32": np.dtype("float32"),
    "BF16": BFLOAT16,
    "F16": np.dtype("float16"),
    "I8": np.dtype("int8"),
}
"""The stored types that can be read, by their names in the format."""


def find_files(directory: Path) -> tuple[Path, ...]:
    """The checkpoint's files: those that the index names, else every one in the folder.

    Raises:
      CheckpointError: the index is no index, or a file that it names is not there.
    """
    if not (directory / INDEX).is_file():
        return tuple(sorted(directory.glob("*.safetensors")))
    files = tuple(directory / name for name in sorted(set(_weight_map(directory / INDEX).values())))
    for file in files:
        if not os.path.isfile(file):  # which also says so of a name that no file can have
            raise CheckpointError(f"{file}: is not there, but {INDEX} names it; download it as well")
    return files


@contextmanager
def open_files(files: Sequence[Path]) -> Iterator[Tensors]:
    """The files' tensors; the files are mapped to memory, and read on demand.

    Raises:
      CheckpointError: a file is cut short, empty or no such file, two hold the same tensor, or an index beside them
        tells of others.
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
        if files and (index := files[0].parent / INDEX).is_file():
            _check_index(index, tensors)
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
            array: HostArray = rows[wanted]
            return array

        return read

    return StoredTensor(name, file, tuple(rows.get_shape()), DTYPES[rows.get_dtype()], open_tensor)


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        content = json.loads(index.read_bytes())
        weight_map = content["weight_map"]
        if all(isinstance(file, str) and Path(file).name == file for file in weight_map.values()):
            return dict(weight_map)
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        pass  # told below
    raise CheckpointError(
        f"{index}: must be JSON with a weight_map from tensors to files of this folder; download it again"
    )


def _check_index(index: Path, tensors: Tensors) -> None:
    for name, file in _weight_map(index).items():
        found = tensors.get(name)
        if found is None or found.file.name != file:
            place = "is in no file" if found is None else f"is in {found.file.name}"
            raise CheckpointError(
                f"{index}: says that tensor {name} is in {file}, but it {place}; download the index and the files "
                "again, all of one revision"
            )


_SHARD_BYTES: Final = 4 * 10**9

_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


def write_files(folder: Path, tensors: Tensors, report: Callable[[], object]) -> None:
    """Writes tensors, with an index where one file would be large.

    Args:
      report: called after each tensor.
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
    """Cuts the tensors into files of at most so many bytes, but for a tensor that is larger."""
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
