"""Conversion of checkpoints to another format or precision, one tensor at a time, with verification."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import ml_dtypes
import numpy as np

from ..core.errors import CheckpointError
from ..core.units import shown_bytes
from ..model.config import ModelConfig
from . import FORMATS, open_tensors
from .format import CheckpointFormat
from .layout import tensor_specs
from .precision import in_precision
from .source import ModelSource
from .tensors import StoredTensor, Tensors, bytes_of
from .weights import Checkpoint

type Progress = Callable[[str, int, int], None]
"""Called with the stage ("writing" or "checking"), the number of finished tensors, and of all tensors."""

_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "float32": np.dtype("float32"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

_TEXT_FILES: Final = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
"""Files that are copied unchanged."""


@dataclass(frozen=True, slots=True)
class Converted:
    """Result of a conversion.

    Attributes:
      fingerprint: Hash of the tensors' names, shapes, dtypes and values, the same in every format.
      num_bytes: Bytes of all tensors.
    """

    fingerprint: str
    num_bytes: int


def convert(
    source: ModelSource,
    destination: Path,
    *,
    dtype: str | None = None,
    quantize: Literal["int8"] | None = None,
    to: str = "hf",
    progress: Progress | None = None,
) -> Converted:
    """Writes a checkpoint in another format or precision; the destination appears only if it is whole and verified.

    Args:
      source: Model to convert.
      destination: Folder that does not exist yet.
      dtype: "float32" or "bfloat16"; None keeps each tensor's dtype.
      quantize: "int8" or None.
      to: Name of the format, one of `FORMATS`.
      progress: Callback for progress.

    Raises:
      CheckpointError: The source cannot be read, the destination cannot be written, or the written tensors differ when
        read again.
    """
    kind = FORMATS[to]
    _check_options(source, dtype, quantize, kind)
    report = progress or (lambda stage, done, total: None)
    with open_tensors(source.weights, source.config) as stored:
        checkpoint = Checkpoint(source.config, stored)
        target = None if dtype is None else _DTYPES[dtype]
        tensors = in_precision(stored, tensor_specs(source.config), target, int8=quantize is not None)
        config = replace(source.config, dtype=dtype or checkpoint.dtype, quantize=quantize or source.config.quantize)
        with _new_folder(destination, sum(t.num_bytes for t in tensors.values())) as folder:
            written = _write(folder, tensors, config, kind, report)
            _write_other_files(folder, source, config, kind)
            if _read_again(folder, kind, report) != written:
                raise CheckpointError(f"{destination}: what was written is not what is read again; is the disk faulty?")
    return Converted(written, sum(t.num_bytes for t in tensors.values()))


def fingerprint(digests: Mapping[str, str]) -> str:
    """Returns the hash of all tensors' digests, by name."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:32]


def _check_options(source: ModelSource, dtype: str | None, quantize: str | None, kind: CheckpointFormat) -> None:
    if source.is_random:
        raise CheckpointError(f"{source.name}: random weights are no checkpoint that could be converted")
    is_int8 = source.config.quantize is not None
    if is_int8 and (dtype is not None or quantize is not None):
        raise CheckpointError(f"{source.name}: is stored in int8 already; convert the original checkpoint instead")
    if not kind.has_int8 and (is_int8 or quantize is not None):
        raise CheckpointError(f"{kind.title} has no int8; use --format hf")


@contextmanager
def _new_folder(destination: Path, num_bytes: int) -> Iterator[Path]:
    """Yields a folder beside the destination that is renamed to it on success and deleted on failure."""
    if destination.exists():
        raise CheckpointError(f"{destination}: is there already; name a folder that does not exist")
    parent = destination.resolve().parent
    folder = parent / f".{destination.name}.{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True)
        if (free := shutil.disk_usage(folder).free) < num_bytes:
            raise CheckpointError(
                f"{destination}: takes {shown_bytes(num_bytes)}, but only {shown_bytes(free)} are free there"
            )
        yield folder
        folder.rename(destination)
    except OSError as error:
        raise CheckpointError(f"{destination}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, tensors: Tensors, config: ModelConfig, kind: CheckpointFormat, report: Progress) -> str:
    """Writes the tensors and returns their fingerprint."""
    digests: dict[str, str] = {}
    hashed = {name: _hashed(tensor, digests) for name, tensor in tensors.items()}

    kind.write(folder, hashed, config, lambda: report("writing", len(digests), len(tensors)))
    return fingerprint(digests)


def _read_again(folder: Path, kind: CheckpointFormat, report: Progress) -> str:
    """Returns the fingerprint of the written checkpoint, found and opened as a server would."""
    found = kind.find(folder)
    assert found is not None
    digests: dict[str, str] = {}
    with kind.open(found.weights, found.config) as tensors:
        Checkpoint(found.config, tensors)
        for tensor in tensors.values():
            for _ in _hashed(tensor, digests).pieces():
                pass
            report("checking", len(digests), len(tensors))
    return fingerprint(digests)


def _hashed(tensor: StoredTensor, digests: dict[str, str]) -> StoredTensor:
    """Returns the tensor with a reader that adds its digest to `digests` once all rows have been read in order."""

    def open_tensor() -> Callable[[slice], Any]:
        read = tensor.open()
        digest = hashlib.sha256(repr((tensor.name, tensor.shape, tensor.dtype.name)).encode())

        def read_and_hash(rows: slice) -> Any:
            piece = read(rows)
            digest.update(bytes_of(piece))
            if rows.stop == tensor.shape[0]:
                digests[tensor.name] = digest.hexdigest()
            return piece

        return read_and_hash

    return replace(tensor, open=open_tensor)


def _write_other_files(folder: Path, source: ModelSource, config: ModelConfig, kind: CheckpointFormat) -> None:
    """Writes the config, and copies the tokenizer and generation defaults."""
    for name in _TEXT_FILES:
        if source.directory is not None and (source.directory / name).is_file():
            shutil.copyfile(source.directory / name, folder / name)
    fields = _with_token_ids(kind.config_fields(config), source)
    (folder / kind.config_file).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _with_token_ids(fields: Mapping[str, Any], source: ModelSource) -> dict[str, Any]:
    """Returns config fields with the special tokens that the source's own config names."""
    path = None if source.directory is None else source.directory / "config.json"
    if path is None or not path.is_file():
        return dict(fields)
    own = json.loads(path.read_bytes())
    return dict(fields) | {name: own[name] for name in fields if name.endswith("_token_id") and name in own}
