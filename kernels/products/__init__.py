"""Products of activations with matrices of weights: alone, in the gated MLP, and in the output layer.

Activations are quantised to int8 row by row if the matrix is in int8 (W8A8). On a TPU kernels do so on the chip, where
activations stay while the matrices stream past them. Separate operations would move the activations between quantising,
multiplying and scaling. CPUs have native kernels for packed matrices.
"""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from ..arithmetic import float_dot, gelu, rounded
from ..backend import XLA, Backend
from ..matrices import Matrix, PackedMatrix, QuantizedMatrix


def product(
    x: Float[Array, "*rows I"],
    weight: Matrix,
    bias: Float32[Array, " O"] | None = None,
    dtype: jnp.dtype | None = None,
    backend: Backend = XLA,
) -> Float[Array, "*rows O"]:
    """Returns x · weightᵀ + bias, summed in float32, or in int32 if the weight is in int8.

    Args:
      x: Activations.
      weight: Matrix.
      bias: Bias of each output, or None.
      dtype: Dtype of the result; None for float32.
      backend: Backend of the kernels.
    """
    rows = x.reshape(-1, x.shape[-1])
    y = backend.dispatch("product", product_xla, rows, weight, bias, dtype or jnp.dtype("float32"))
    return y.reshape(*x.shape[:-1], y.shape[1])


def fills_registers(*shapes: tuple[int, ...]) -> bool:
    """Returns whether matrices of these shapes consist of whole vector registers."""
    return all(size % 128 == 0 for shape in shapes for size in shape)


def product_xla(
    x: Float[Array, "R I"],
    weight: Float[Array, "O I"] | QuantizedMatrix,
    bias: Float32[Array, " O"] | None,
    dtype: jnp.dtype,
) -> Float[Array, "R O"]:
    """Returns x · weightᵀ + bias; see `product`."""
    rows = pad_rows(x, weight.dtype)
    y = (float_dot(rows, weight) if isinstance(weight, Array) else weight.dot(rows))[: x.shape[0]]
    return (y if bias is None else y + bias).astype(dtype)


def pad_rows(rows: Float[Array, "R *shape"], dtype: jnp.dtype) -> Float[Array, "R2 *shape"]:
    """Repeats rows up to a minimum number: below it XLA for CPUs takes a slower path, with other bits."""
    least = 8 if dtype == jnp.float32 else 2
    return jnp.concatenate([rows] * -(-least // rows.shape[0]))


def gated_mlp(
    x: Float[Array, "*rows D"],
    gate_up: Matrix,
    gate_up_bias: Float32[Array, " F2"],
    down: Matrix,
    down_bias: Float32[Array, " D"] | None,
    backend: Backend,
) -> Float[Array, "*rows D"]:
    """Returns down(gelu(gate(x)) * up(x)) in the dtype of x (arXiv 2402.19427, section 2.2).

    On a TPU one kernel reads the weights once and keeps intermediate results in on-chip memory: for matrices in floats,
    as long as the rows fit there too. On GPUs separate products are as fast.

    Args:
      x: Inputs.
      gate_up: Weights of the gate, then of the value.
      gate_up_bias: Biases of both.
      down: Weights of the output projection.
      down_bias: Bias of the output projection; None for none, as in partial sums over shards.
      backend: Backend of the kernels.
    """
    separate = partial(gated_mlp_separate, backend=backend)
    return backend.dispatch("gated_mlp", separate, x, gate_up, gate_up_bias, down, down_bias)


def gated_mlp_separate(
    x: Float[Array, "*rows D"],
    gate_up: Matrix,
    gate_up_bias: Float32[Array, " F2"],
    down: Matrix,
    down_bias: Float32[Array, " D"] | None,
    backend: Backend,
) -> Float[Array, "*rows D"]:
    """Returns down(gelu(gate(x)) * up(x)); see `gated_mlp`."""
    gate, up = jnp.split(product(x, gate_up, gate_up_bias, x.dtype, backend), 2, axis=-1)
    return product((gelu(gate) * up).astype(x.dtype), down, down_bias, x.dtype, backend)


def logits(
    x: Float[Array, "*rows D"], weight: Matrix, cap: float | None, backend: Backend
) -> Float32[Array, "*rows V"]:
    """Returns cap * tanh(x · weightᵀ / cap).

    Args:
      x: Activations after the final norm.
      weight: Matrix with a row for each token.
      cap: Soft cap; None for the products themselves.
      backend: Backend of the kernels.
    """
    return backend.dispatch("logits", logits_xla, x, weight, cap)


def argmax(x: Float[Array, "R D"], weight: Matrix, cap: float | None, backend: Backend) -> Int32[Array, " R"]:
    """Returns the token with the largest logit of each row; the lowest id among equals.

    A row whose largest logit is not finite gets any token, or a negative one.
    """
    return backend.dispatch("argmax", argmax_xla, x, weight, cap)


def has_argmax_without_logits(weight: Matrix) -> bool:
    """Returns whether `argmax` with this matrix has a kernel that does not store the logits."""
    return isinstance(weight, PackedMatrix)


def logits_xla(x: Float[Array, "*rows D"], weight: Matrix, cap: float | None) -> Float32[Array, "*rows V"]:
    """Returns the logits; see `logits`."""
    return soft_cap(product(x, weight), cap)


def argmax_xla(x: Float[Array, "R D"], weight: Matrix, cap: float | None) -> Int32[Array, " R"]:
    """Returns the argmax of the logits; see `argmax`."""
    return jnp.argmax(logits_xla(x, weight, cap), axis=-1).astype(jnp.int32)


def soft_cap(logits: Float32[Array, "*rows V"], cap: float | None) -> Float32[Array, "*rows V"]:
    """Returns cap * tanh(logits / cap); the logits themselves without a cap."""
    return rounded(cap * jnp.tanh(logits / cap)) if cap else logits
