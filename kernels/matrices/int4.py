"""Matrices in 4 bits, and their products with activations that are quantised to int8 (W4A8).

The inputs of a row are divided into groups. A group's values are integers from -8 to 7, and share a float16 scale,
which is searched for the least squared error. Sums of a group's products are exact integers; scaled sums are added in
float32, group after group, so a row's result does not depend on the other rows. Products by XLA widen every weight in
each step, so they save memory and not time.
"""

import math
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float16, Float32, Int32, UInt8

from ..arithmetic import round_to_int8, rounded

GROUPS: Final = (64, 32)
"""Numbers of inputs that share a scale; a matrix takes the first that divides its inputs."""

OFFSET: Final = 8
"""Number that is added to a value, so that it is stored as an unsigned integer."""

_PIECE: Final = 2**16
"""Elements that are quantised at a time on the host, so that the temporary arrays stay in the processor's cache."""


type Groups = np.ndarray[Any, np.dtype[np.float32]]
"""Groups of weights, `[N, size]`."""

type Scales = np.ndarray[Any, np.dtype[np.float16]]
"""Scale of each group, `[N]`."""

_LARGEST: Final = float(np.finfo(np.float16).max)

_STEPS: Final = (-8.6, -8.0, -7.5, -7.0, -6.5, -6.0)
"""Values that the weight of the largest size in a group becomes in the candidates."""


class Int4Matrix(NamedTuple):
    """Matrix of 4-bit values, each group of which has a scale; arrays on the device or host, or shapes.

    Attributes:
      values: The rows, two values in a byte: the first in the lower half, each with 8 added.
      scale: Factor of each group.
    """

    values: UInt8[Any, "O I2"]
    scale: Float16[Any, "O G"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix."""
        outputs, half = self.values.shape
        return outputs, 2 * half

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the values before they are packed."""
        return jnp.dtype("int4")

    @classmethod
    def zeros(cls, outputs: int, inputs: int) -> "Int4Matrix":
        """Returns a matrix of zeros; see `takes_inputs`."""
        values = jnp.full((outputs, inputs // 2), OFFSET * 17, jnp.uint8)
        return cls(values, jnp.zeros((outputs, inputs // group_size(inputs)), jnp.float16))

    @classmethod
    def quantize(cls, matrix: np.ndarray[Any, np.dtype[Any]]) -> "Int4Matrix":
        """Quantises a matrix of any floating-point dtype on the host, some rows at a time; see `search_scales`."""
        outputs, inputs = matrix.shape
        size = group_size(inputs)
        values = np.empty((outputs, inputs // 2), np.uint8)
        scale = np.empty((outputs, inputs // size), np.float16)
        step = max(_PIECE // inputs, 1)
        for start in range(0, outputs, step):
            rows = slice(start, start + step)
            groups = matrix[rows].astype(np.float32).reshape(-1, size)
            scales = search_scales(groups)
            scale[rows] = scales.reshape(-1, inputs // size)
            values[rows] = pack_nibbles(round_to_int4(groups, scales).reshape(-1, inputs))
        return cls(values, scale)

    def in_groups(self, largest: int) -> "Int4Matrix":
        """Returns the shapes of a matrix whose groups are of this size, or of the power of two that divides both."""
        outputs, inputs = self.shape
        groups = inputs // math.gcd(inputs, largest)
        return Int4Matrix(self.values, jax.ShapeDtypeStruct((outputs, groups), jnp.float16))

    def dot(self, x: Float[Array, "R I"]) -> Float32[Array, "R O"]:
        """Returns x · weightᵀ, with the rows of x quantised to int8."""
        rows, row_scale = round_to_int8(x)
        size = self.shape[1] // self.scale.shape[1]

        def add_group(group: Int32[Array, ""], total: Float32[Array, "R O"]) -> Float32[Array, "R O"]:
            packed = jax.lax.dynamic_slice_in_dim(self.values, group * (size // 2), size // 2, axis=1)
            inputs = jax.lax.dynamic_slice_in_dim(rows, group * size, size, axis=1).astype(jnp.float32)
            scale = jax.lax.dynamic_index_in_dim(self.scale, group, axis=1, keepdims=False)
            return total + rounded(_exact_product(inputs, unpack_nibbles(packed)) * scale.astype(jnp.float32))

        zero = jnp.zeros((len(x), len(self.values)), jnp.float32)
        return rounded(jax.lax.fori_loop(0, self.scale.shape[1], add_group, zero) * row_scale)

    def rows(self, rows: Int32[Array, "*shape"]) -> Float32[Array, "*shape I"]:
        """Returns some rows in float32."""
        values, scale = unpack_nibbles(self.values[rows]), self.scale[rows].astype(jnp.float32)
        return (values.reshape(*scale.shape, -1) * scale[..., None]).reshape(values.shape)


def takes_inputs(inputs: int) -> bool:
    """Returns whether a matrix with this many inputs can be quantised to 4 bits: some group divides them."""
    return inputs % GROUPS[-1] == 0


def group_size(inputs: int) -> int:
    """Returns the number of inputs that share a scale in a matrix with this many inputs; see `takes_inputs`."""
    return next(size for size in GROUPS if inputs % size == 0)


def round_to_int4(
    groups: np.ndarray[Any, np.dtype[np.float32]], scales: np.ndarray[Any, np.dtype[np.float16]]
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Returns the values of groups `[N, size]` with these scales `[N]`, with 8 added."""
    wide = scales.astype(np.float32)
    factors = np.divide(1.0, wide, out=np.zeros_like(wide), where=wide != 0)
    values = np.rint(groups * factors[:, None])
    return (np.clip(values, -8, 7, out=values) + OFFSET).astype(np.uint8)


def pack_nibbles(values: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Returns rows of values below 16, two in a byte, the first in the lower half."""
    return values[:, ::2] | values[:, 1::2] << np.uint8(4)


def unpack_nibbles(packed: UInt8[Array, "*rows I2"]) -> Float32[Array, "*rows I"]:
    """Returns rows of values in float32, of which the 8 that was added is subtracted."""
    halves = jnp.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return halves.astype(jnp.float32) - OFFSET


def _exact_product(x: Float32[Array, "R n"], weight: Float32[Array, "O n"]) -> Float32[Array, "R O"]:
    """Returns x · weightᵀ of integers: sums of a group's products are below 2²⁴, and so exact in float32."""
    contracted = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, weight, contracted, precision=jax.lax.Precision.HIGHEST)


def search_scales(groups: Groups) -> Scales:
    """Returns the scale of each group for which the values' squared error is the least of some candidates.

    A candidate maps the group's weight of the largest size to one of a few numbers near -8, so a scale may be negative.
    Given the rounded values q of a candidate, the best scale is w · q / q · q.
    """
    extreme = _extremes(groups)
    best, scales = np.zeros(len(groups), np.float32), np.zeros(len(groups), np.float32)
    for step in _STEPS:
        factors = np.divide(np.float32(step), extreme, out=np.zeros_like(extreme), where=np.abs(extreme) > 1e-30)
        values = groups * factors[:, None]
        np.clip(np.rint(values, out=values), -8, 7, out=values)
        along, size = _dots(groups, values), np.maximum(_dots(values, values), 1)
        gain = along * along / size
        is_better = gain > best
        best[is_better], scales[is_better] = gain[is_better], (along / size)[is_better]
    return np.clip(scales, -_LARGEST, _LARGEST).astype(np.float16)


def _extremes(groups: Groups) -> Groups:
    """Returns the weight of the largest size in each group, with its sign."""
    high, low = groups.max(axis=1), groups.min(axis=1)
    return np.where(high > -low, high, low)


def _dots(one: Groups, other: Groups) -> Groups:
    """Returns the dot product of each pair of groups, added in an order that depends on their size alone."""
    return np.einsum("ng,ng->n", one, other)
