"""Quantisation to 4 bits for the activations of sample texts, layer by layer in float32.

The texts go through two models side by side: the exact one, and one whose matrices up to the current one are
quantised. A matrix is first fitted so that its outputs in the second model are those in the first, and then quantised
for its inputs in the second (GPTAQ, arXiv 2504.02692). So each matrix makes up for the errors of earlier ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32

from ...kernels import Backend, Kernel
from ...kernels.matrices import Int4Matrix
from ...kernels.matrices.error_compensation import quantize_for_inputs
from ..model.collectives import Collectives
from ..model.config import ModelConfig, ParamPath
from ..model.griffin import scaled_embeddings
from ..model.layers import ResidualBlock
from ..model.state import zero_state
from ..types.arrays import HostArray
from .format import StoredTensor
from .layout import checkpoint_layout
from .weights import Checkpoint

TEXT_TOKENS: Final = 512
"""Number of tokens of each sample text."""

_BLOCK: Final = 64
"""Tokens per block of attention."""

_DAMPING: Final = 0.01
"""Share of the mean square of a matrix's inputs that is added to the square of each."""

_FLOAT32: Final = jnp.dtype("float32")


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
        self._x = self._embed(np.asarray(texts, np.int32))

    def quantize(self, tensor: StoredTensor) -> Int4Matrix:
        """Returns a matrix of the current layer, or of one behind it, which becomes the current one."""
        (_, layer, *path), rows = self._rows[tensor.name]
        while self._layer < int(layer):
            self._layer += 1
            self._run_layer()
        return Int4Matrix(*(part[rows] for part in self._quantized[tuple(path)]))

    def _embed(self, tokens: HostArray) -> Float32[Array, "B2 T D"]:
        """Returns the first layer's inputs, for both models."""
        x = scaled_embeddings(self._config, jnp.asarray(self._checkpoint.read_embeddings(tokens)))
        return jnp.concatenate([x, x])

    def _run_layer(self) -> None:
        """Runs the current layer in both models, and quantises its matrices on the way."""
        kind = self._config.block_types[self._layer]
        backend = Backend("calibration", (Kernel("product", (), self._product),))
        layer = nnx.eval_shape(lambda: ResidualBlock(self._config, kind, _FLOAT32, _FLOAT32, backend, Collectives()))
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
        array: HostArray = self._checkpoint.read(("blocks", self._layer, *path), like)  # type: ignore[assignment]
        return array

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
