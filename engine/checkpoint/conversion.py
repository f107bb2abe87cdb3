"""Conversion of checkpoints to another format or precision, one tensor at a time, with verification."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np

from ..model.config import ModelConfig
from ..model.griffin import check_int4_inputs
from ..types.config import Quantization
from ..types.errors import CheckpointError
from ..types.host_memory import shown_bytes
from . import WRITABLE_FORMATS, open_tensors
from .calibration import Calibration
from .format import StoredTensor, Tensors, WritableFormat, bytes_of
from .precision import in_dtype, in_int4, in_int8
from .source import ModelSource
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
    quantize: Quantization | None = None,
    texts: Sequence[Sequence[int]] | None = None,
    to: str = "hf",
    progress: Progress | None = None,
) -> Converted:
    """Writes a checkpoint in another format or precision. The destination appears only once it is complete and
    verified.

    Args:
      destination: Folder that does not exist yet.
      dtype: "float32" or "bfloat16"; None keeps each tensor's dtype.
      quantize: "int8", "int4" or None. Without texts, int4 gives the bytes that loading with it does.
      texts: Token ids of sample texts, `TEXT_TOKENS` of each, for whose activations int4 is calibrated; None searches
        scales without data, as loading does.
      to: Name of the format, one of `WRITABLE_FORMATS`.
      progress: Callback for progress.

    Raises:
      ConfigError: Int4 does not take the sizes of the model's matrices.
      CheckpointError: The source cannot be read, the destination cannot be written, or the written tensors differ when
        read again.
    """
    kind = WRITABLE_FORMATS[to]
    _check_options(source, dtype, quantize, kind)
    report = progress or (lambda stage, done, total: None)
    with open_tensors(source.weights, source.config, source.adapters) as stored:
        checkpoint = Checkpoint(source.config, stored)
        target = None if dtype is None else _DTYPES[dtype]
        tensors = _converted(checkpoint, stored, source.config, target, quantize, texts)
        config = replace(source.config, dtype=dtype or checkpoint.dtype, quantize=quantize or source.config.quantize)
        with _new_folder(destination, sum(t.num_bytes for t in tensors.values())) as folder:
            written = _write(folder, tensors, config, kind, report)
            _write_other_files(folder, source, config, kind)
            if _read_again(folder, kind, report) != written:
                raise CheckpointError(f"{destination}: what was written is not what is read again; is the disk faulty?")
    return Converted(written, sum(t.num_bytes for t in tensors.values()))


def _converted(
    checkpoint: Checkpoint,
    tensors: Tensors,
    config: ModelConfig,
    dtype: np.dtype[Any] | None,
    quantize: Quantization | None,
    texts: Sequence[Sequence[int]] | None,
) -> Tensors:
    if quantize == "int4":
        return in_int4(
            tensors, config, dtype, None if texts is None else Calibration(checkpoint, config, texts).quantize
        )
    return (in_dtype if quantize is None else in_int8)(tensors, config, dtype)


def fingerprint(digests: Mapping[str, str]) -> str:
    """Returns the hash of all tensors' digests, by name."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:32]


def _check_options(source: ModelSource, dtype: str | None, quantize: str | None, kind: WritableFormat) -> None:
    if source.is_random:
        raise CheckpointError(f"{source.name}: random weights are no checkpoint that could be converted")
    stored = source.config.quantize
    if stored is not None and (dtype is not None or quantize is not None):
        raise CheckpointError(f"{source.name}: is stored in {stored} already; convert the original checkpoint instead")
    if quantize == "int4":
        check_int4_inputs(source.config)
    if not kind.has_key_heads and source.config.num_key_heads > 1:
        raise CheckpointError(
            f"{kind.title} has one key head, but num_key_value_heads is {source.config.num_key_heads}; use --format hf"
        )
    if not kind.has_quantized and (stored or quantize) is not None:
        raise CheckpointError(f"{kind.title} has no {stored or quantize}; use --format hf")


@contextmanager
def _new_folder(destination: Path, num_bytes: int) -> Iterator[Path]:
    """Yields a new folder, which is renamed to the destination on success, and deleted on failure."""
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


def _write(folder: Path, tensors: Tensors, config: ModelConfig, kind: WritableFormat, report: Progress) -> str:
    """Writes the tensors and returns their fingerprint."""
    digests: dict[str, str] = {}
    hashed = {name: _hashed(tensor, digests) for name, tensor in tensors.items()}

    kind.write(folder, hashed, config, lambda: report("writing", len(digests), len(tensors)))
    return fingerprint(digests)


def _read_again(folder: Path, kind: WritableFormat, report: Progress) -> str:
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


def _write_other_files(folder: Path, source: ModelSource, config: ModelConfig, kind: WritableFormat) -> None:
    """Writes the config, and copies the tokenizer and generation defaults."""
    for name in _TEXT_FILES:
        if source.directory is not None and (source.directory / name).is_file():
            shutil.copyfile(source.directory / name, folder / name)
    fields = _with_token_ids(kind.config_fields(config), source)
    (folder / kind.config_file).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _with_token_ids(fields: Mapping[str, Any], source: ModelSource) -> dict[str, Any]:
    """Returns config fields with the special tokens that the source's config names."""
    path = None if source.directory is None else source.directory / "config.json"
    if path is None or not path.is_file():
        return dict(fields)
    own = json.loads(path.read_bytes())
    return dict(fields) | {name: own[name] for name in fields if name.endswith("_token_id") and name in own}
