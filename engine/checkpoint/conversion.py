"""From one checkpoint to another: format, precision, or both; a tensor at a time, and read again to be sure."""

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
from ..model.config import ModelConfig, config_to_hf
from . import open_tensors
from .griffin_config import NAME as GRIFFIN_CONFIG
from .griffin_config import griffin_fields
from .layout import tensor_specs
from .orbax import write_orbax
from .precision import in_precision
from .safetensors_files import write_files
from .source import ModelSource
from .tensors import StoredTensor, Tensors, bytes_of
from .weights import Checkpoint

type Format = Literal["hf", "orbax"]

type Progress = Callable[[str, int, int], None]
"""Called with a stage ("writing", "checking"), how many tensors are done, and how many there are."""

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
"""What goes along as it is."""


@dataclass(frozen=True, slots=True)
class Converted:
    """
    Attributes:
      fingerprint: of names, shapes, types and numbers, whatever the format.
      num_bytes: of all tensors.
    """

    fingerprint: str
    num_bytes: int


def convert(
    source: ModelSource,
    destination: Path,
    *,
    dtype: str | None = None,
    quantize: Literal["int8"] | None = None,
    to: Format = "hf",
    progress: Progress | None = None,
) -> Converted:
    """Writes a checkpoint anew. The destination comes into being whole, checked, or not at all.

    Args:
      destination: a folder that is not there yet.
      dtype: "float32" or "bfloat16"; None keeps each tensor's own.
      quantize: "int8" or None.

    Raises:
      CheckpointError: the source cannot be read, the destination cannot be written, or what was written is not what is
        read again.
    """
    _check_options(source, dtype, quantize, to)
    report = progress or (lambda stage, done, total: None)
    with open_tensors(source.weights, source.config) as stored:
        checkpoint = Checkpoint(source.config, stored)
        target = None if dtype is None else _DTYPES[dtype]
        tensors = in_precision(stored, tensor_specs(source.config), target, int8=quantize is not None)
        config = replace(source.config, dtype=dtype or checkpoint.dtype, quantize=quantize or source.config.quantize)
        with _new_folder(destination, sum(t.num_bytes for t in tensors.values())) as folder:
            written = _write(folder, tensors, config, to, report)
            _write_others(folder, source, config, to)
            if _read_again(folder, config, to, report) != written:
                raise CheckpointError(f"{destination}: what was written is not what is read again; is the disk faulty?")
    return Converted(written, sum(t.num_bytes for t in tensors.values()))


def fingerprint(digests: Mapping[str, str]) -> str:
    """Of all tensors' digests."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:32]


def _check_options(source: ModelSource, dtype: str | None, quantize: str | None, to: Format) -> None:
    if source.is_random:
        raise CheckpointError(f"{source.name}: random weights are no checkpoint that could be converted")
    is_int8 = source.config.quantize is not None
    if is_int8 and (dtype is not None or quantize is not None):
        raise CheckpointError(f"{source.name}: is stored in int8 already; convert the original checkpoint instead")
    if to == "orbax" and (is_int8 or quantize is not None):
        raise CheckpointError("the official format has no int8; use --format hf")


@contextmanager
def _new_folder(destination: Path, num_bytes: int) -> Iterator[Path]:
    """A folder beside the destination, which takes its place in the end, and is gone if something fails."""
    if destination.exists():
        raise CheckpointError(f"{destination}: is there already; name a folder that is not")
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


def _write(folder: Path, tensors: Tensors, config: ModelConfig, to: Format, report: Progress) -> str:
    """Writes the tensors; gives the fingerprint of what was read for it."""
    digests: dict[str, str] = {}
    hashed = {name: _hashed(tensor, digests) for name, tensor in tensors.items()}

    def tell() -> None:
        report("writing", len(digests), len(tensors))

    if to == "hf":
        write_files(folder, hashed, tell)
    else:
        write_orbax(folder, hashed, config, tell)
    return fingerprint(digests)


def _read_again(folder: Path, config: ModelConfig, to: Format, report: Progress) -> str:
    weights = [folder] if to == "orbax" else sorted(folder.glob("*.safetensors"))
    digests: dict[str, str] = {}
    with open_tensors(weights, config) as tensors:
        Checkpoint(config, tensors)
        for tensor in tensors.values():
            for _ in _hashed(tensor, digests).pieces():
                pass
            report("checking", len(digests), len(tensors))
    return fingerprint(digests)


def _hashed(tensor: StoredTensor, digests: dict[str, str]) -> StoredTensor:
    """The same tensor; once it has been read to its end, in order, its digest is among `digests`."""

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


def _write_others(folder: Path, source: ModelSource, config: ModelConfig, to: Format) -> None:
    """The config, the tokenizer, and how the model wants to be sampled."""
    for name in _TEXT_FILES:
        if source.directory is not None and (source.directory / name).is_file():
            shutil.copyfile(source.directory / name, folder / name)
    name, fields = (GRIFFIN_CONFIG, griffin_fields(config)) if to == "orbax" else ("config.json", config_to_hf(config))
    (folder / name).write_text(json.dumps(_with_token_ids(fields, source), indent=2) + "\n", encoding="utf-8")


def _with_token_ids(fields: dict[str, Any], source: ModelSource) -> dict[str, Any]:
    """The special tokens of a checkpoint that names them in its own config."""
    path = None if source.directory is None else source.directory / "config.json"
    if path is None or not path.is_file():
        return fields
    own = json.loads(path.read_bytes())
    return fields | {name: own[name] for name in fields if name.endswith("_token_id") and name in own}
