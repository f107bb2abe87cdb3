"""Safetensors files in the Hugging Face layout: which of a folder's belong to the checkpoint, and what is in them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open

from ...errors import CheckpointError
from .tensors import BFLOAT16, HostArray, ReadRows, StoredTensor, Tensors

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
        if not file.is_file():
            raise CheckpointError(f"{file}: is not there, but {INDEX} names it; download it as well")
    return files


@contextmanager
def open_files(files: Sequence[Path]) -> Iterator[Tensors]:
    """The files' tensors; the files are mapped to memory, and read on demand.

    Raises:
      CheckpointError: a file is cut short or no such file, two hold the same tensor, or an index beside them tells of
        others.
    """
    tensors: dict[str, StoredTensor] = {}
    with ExitStack() as stack:
        for file in files:
            handle = _open(file, stack)
            for name in handle.keys():  # noqa: SIM118 (it is no mapping)
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
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
