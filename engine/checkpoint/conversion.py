"""Conversion of checkpoints to safetensors in any precision, one tensor at a time, with verification.

Matrices are quantised to 4 bits for the activations of sample texts, layer by layer in float32. The texts go through
two models side by side: the exact one, and one whose matrices up to the current one are quantised. A matrix is first
fitted so that its outputs in the second model are those in the first, and then quantised for its inputs in the second
(GPTQ, arXiv 2504.02692). So each matrix makes up for the errors of earlier ones.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32

from ...kernels import Backend, Kernel
from ...kernels.matrices import Int4Matrix
from ...kernels.matrices.error_compensation import quantize_for_inputs
from ..model.config import ModelConfig, ParamPath, config_to_hf
from ..model.griffin import check_int4_inputs, scaled_embeddings
from ..model.layers import LayerContext, ResidualBlock
from ..model.sharding import Collectives
from ..model.state import zero_state
from ..types.config import Quantization
from ..types.errors import CheckpointError
from ..types.host_memory import HostArray
from .format import StoredTensor, Tensors, bytes_of
from .layout import checkpoint_layout, converted
from .safetensors_files import CONFIG, write_files
from .source import ModelSource, open_model, open_tensors
from .weights import Checkpoint

type Progress = Callable[[str, int, int], None]
"""Called with the stage ("writing" or "checking"), the number of finished tensors, and of all tensors."""

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

TEXT_TOKENS: Final = 512
"""Number of tokens of each sample text."""

_BLOCK: Final = 64
"""Tokens per block of attention."""

_DAMPING: Final = 0.01
"""Share of the mean square of a matrix's inputs that is added to the square of each."""

_FLOAT32: Final = jnp.dtype("float32")


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
    progress: Progress | None = None,
) -> Converted:
    """Writes a checkpoint as safetensors, in its own precision or another.

    The destination appears only once it is complete and verified.

    Args:
      destination: Folder that does not exist yet.
      dtype: "float32" or "bfloat16"; None keeps each tensor's dtype.
      quantize: "int8", "int4" or None. Without texts, int4 gives the bytes that loading with it does.
      texts: Token ids of sample texts, `TEXT_TOKENS` of each, for whose activations int4 is calibrated; None searches
        scales without data, as loading does.
      progress: Callback for progress.

    Raises:
      ConfigError: Int4 does not take the sizes of the model's matrices.
      CheckpointError: The source cannot be read, the destination cannot be written, or the written tensors differ when
        read again.
    """
    _check_options(source, dtype, quantize)
    report = progress or (lambda stage, done, total: None)
    with open_tensors(source.weights, source.config, source.adapters) as stored:
        checkpoint = Checkpoint(source.config, stored)
        target = None if dtype is None else jnp.dtype(dtype)
        calibrated = None if texts is None else Calibration(checkpoint, source.config, texts).quantize
        tensors = converted(stored, source.config, target, quantize, calibrated)
        config = replace(source.config, dtype=dtype or checkpoint.dtype, quantize=quantize or source.config.quantize)
        with _new_folder(destination) as folder:
            written = _write(folder, tensors, report)
            _write_other_files(folder, source, config)
            if _read_again(folder, report) != written:
                raise CheckpointError(f"{destination}: what was written is not what is read again; is the disk faulty?")
    return Converted(written, sum(t.num_bytes for t in tensors.values()))


def fingerprint(digests: Mapping[str, str]) -> str:
    """Returns the hash of all tensors' digests, by name."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:32]


def _check_options(source: ModelSource, dtype: str | None, quantize: str | None) -> None:
    if source.is_random:
        raise CheckpointError(f"{source.name}: random weights are no checkpoint that could be converted")
    stored = source.config.quantize
    if stored is not None and (dtype is not None or quantize is not None):
        raise CheckpointError(f"{source.name}: is stored in {stored} already; convert the original checkpoint instead")
    if quantize == "int4":
        check_int4_inputs(source.config)


@contextmanager
def _new_folder(destination: Path) -> Iterator[Path]:
    """Yields a new folder, which is renamed to the destination on success, and deleted on failure."""
    if destination.exists():
        raise CheckpointError(f"{destination}: is there already; name a folder that does not exist")
    parent = destination.resolve().parent
    folder = parent / f".{destination.name}.{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.rename(destination)
    except OSError as error:
        raise CheckpointError(f"{destination}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, tensors: Tensors, report: Progress) -> str:
    """Writes the tensors and returns their fingerprint."""
    digests: dict[str, str] = {}
    hashed = {name: _hashed(tensor, digests) for name, tensor in tensors.items()}
    write_files(folder, hashed, lambda: report("writing", len(digests), len(tensors)))
    return fingerprint(digests)


def _read_again(folder: Path, report: Progress) -> str:
    """Returns the fingerprint of the written checkpoint, found and opened as a server would."""
    found = open_model(str(folder))
    digests: dict[str, str] = {}
    with open_tensors(found.weights, found.config) as tensors:
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


def _write_other_files(folder: Path, source: ModelSource, config: ModelConfig) -> None:
    """Writes the config, and copies the tokenizer and generation defaults."""
    for name in _TEXT_FILES:
        if source.directory is not None and (source.directory / name).is_file():
            shutil.copyfile(source.directory / name, folder / name)
    fields = _with_token_ids(config_to_hf(config), source)
    (folder / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _with_token_ids(fields: Mapping[str, Any], source: ModelSource) -> dict[str, Any]:
    """Returns config fields with the special tokens that the source's config names."""
    path = None if source.directory is None else source.directory / CONFIG
    if path is None or not path.is_file():
        return dict(fields)
    own = json.loads(path.read_bytes())
    return dict(fields) | {name: own[name] for name in fields if name.endswith("_token_id") and name in own}


class Calibration:
    """Quantises matrices of a checkpoint, which must be requested layer by layer.

    Args:
      checkpoint: The checkpoint, which is not quantised.
      config: The model's config.
      texts: Token ids of sample texts, `TEXT_TOKENS` of each.
    """

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, texts: Sequence[Sequence[int]]) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._rows = _rows_of_tensors(config)
        self._layer = -1
        self._quantized: dict[ParamPath, Int4Matrix] = {}
        self._weights: Mapping[ParamPath, Array] = {}
        x = scaled_embeddings(config, jnp.asarray(checkpoint.read_embeddings(np.asarray(texts, np.int32))))
        self._x: Float32[Array, "B2 T D"] = jnp.concatenate([x, x])  # of both models

    def quantize(self, tensor: StoredTensor) -> Int4Matrix:
        """Returns a matrix of the current layer, or of one behind it, which becomes the current one."""
        (_, layer, *path), rows = self._rows[tensor.name]
        while self._layer < int(layer):
            self._layer += 1
            self._run_layer()
        return Int4Matrix(*(part[rows] for part in self._quantized[tuple(path)]))

    def _run_layer(self) -> None:
        """Runs the current layer in both models, and quantises its matrices on the way."""
        kind = self._config.block_types[self._layer]
        backend = Backend("calibration", (Kernel("product", (), self._product),))
        context = LayerContext(self._config, _FLOAT32, _FLOAT32, backend, Collectives())
        layer = nnx.eval_shape(lambda: ResidualBlock(context, kind))
        graph, shapes = nnx.split(layer)
        leaves, tree = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(shapes))
        paths = [tuple(key.key for key in path) for path, _ in leaves]
        arrays = [jnp.asarray(self._read(path, like)) for path, (_, like) in zip(paths, leaves, strict=True)]
        self._weights, self._quantized = dict(zip(paths, arrays, strict=True)), {}
        (state,) = zero_state(replace(self._config, block_types=(kind,)), len(self._x), _FLOAT32)
        positions = jnp.broadcast_to(jnp.arange(self._x.shape[1], dtype=jnp.int32), self._x.shape[:2])
        run = nnx.merge(graph, jax.tree.unflatten(tree, arrays))
        self._x, *_ = run(self._x, state, positions, _BLOCK)

    def _read(self, path: ParamPath, like: Any) -> HostArray:
        return self._checkpoint.read(("blocks", self._layer, *path), like)  # type: ignore[return-value]

    def _product(
        self, x: Float32[Array, "R I"], weight: Float32[Array, "O I"], bias: Float32[Array, " O"] | None, dtype: Any
    ) -> Float32[Array, "R O"]:
        """Quantises a matrix, and returns the products of the exact model and the other one, of half the rows each."""
        exact, own = np.split(np.asarray(x), 2)
        matrix = _fitted(np.asarray(weight), exact, own)
        quantized = quantize_for_inputs(matrix, _moments(own))
        path = next(path for path, array in self._weights.items() if array is weight)
        self._quantized[path] = quantized
        wide = np.asarray(Int4Matrix(*map(jnp.asarray, quantized)).rows(jnp.arange(len(matrix))))
        y = jnp.concatenate([exact @ np.asarray(weight).T, own @ wide.T])
        return y if bias is None else y + bias


def _rows_of_tensors(config: ModelConfig) -> dict[str, tuple[ParamPath, slice]]:
    """Returns the parameter, and the rows of it, that each matrix of a checkpoint is."""
    places: dict[str, tuple[ParamPath, slice]] = {}
    for path, spec in checkpoint_layout(config).items():
        start = 0
        for tensor in spec.tensors:
            places[tensor.name] = path, slice(start, start + tensor.shape[0])
            start += tensor.shape[0]
    return places


def _moments(x: HostArray) -> HostArray:
    """Returns the mean of x xᵀ over rows, damped so that it can be inverted."""
    moments: HostArray = x.T @ x / np.float32(len(x))
    moments[np.diag_indices_from(moments)] += max(_DAMPING * float(np.trace(moments)) / len(moments), 1e-20)
    return moments


def _fitted(matrix: HostArray, exact: HostArray, own: HostArray) -> HostArray:
    """Returns the matrix whose products with `own` are the closest to the products of the given one with `exact`."""
    change: HostArray = np.linalg.solve(_moments(own), own.T @ (exact - own) / np.float32(len(own)))
    return matrix + matrix @ change.T
