"""Layouts of matrices and gates that the kernels read; see csrc/packed_matrix.h and csrc/recurrent_block.h."""

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

STRIP_OUTPUTS: Final = 16
"""Number of outputs in a strip of a packed matrix."""

_GROUP_BYTES: Final = 4
"""Bytes of each output in a group of inputs."""

_PIECE_WORDS: Final = 2**18
"""Words that are packed at a time, which bounds the memory beside the matrix."""


def can_pack(shape: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Returns whether a matrix of this shape and dtype can be packed: int8 and bfloat16 of whole strips and groups."""
    outputs, inputs = shape
    group = _GROUP_BYTES // dtype.itemsize
    return dtype in (jnp.int8, jnp.bfloat16) and outputs % STRIP_OUTPUTS == 0 and inputs % group == 0


def pack(matrix: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """Packs a contiguous matrix in place, in the layout that products read.

    A strip of 16 outputs has, for each group of 4 bytes of inputs, that group of every output, so that a register of
    the processor holds a group and its lanes are outputs. Int8 values have 128 added.

    Args:
      matrix: Matrix `[O, I]` in int8 or bfloat16; see `can_pack`.

    Returns:
      The same memory as `[O / 16, I / group, 16, group]`, in uint8 for int8.
    """
    outputs, inputs = matrix.shape
    group = _GROUP_BYTES // matrix.itemsize
    words = matrix.view(np.uint32).reshape(outputs // STRIP_OUTPUTS, STRIP_OUTPUTS, inputs // group)
    packed = words.reshape(len(words), inputs // group, STRIP_OUTPUTS)
    flipped = np.uint32(0x80808080 if matrix.dtype == np.int8 else 0)
    step = max(1, _PIECE_WORDS // (STRIP_OUTPUTS * words.shape[2]))
    for start in range(0, len(words), step):
        some = slice(start, start + step)
        packed[some] = words[some].transpose(0, 2, 1) ^ flipped
    dtype = np.dtype("uint8") if matrix.dtype == np.int8 else matrix.dtype
    return packed.view(dtype).reshape(*packed.shape, group)


def packed_shape(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of a packed matrix; see `pack`."""
    outputs, inputs = shape
    group = _GROUP_BYTES // dtype.itemsize
    packed = (outputs // STRIP_OUTPUTS, inputs // group, STRIP_OUTPUTS, group)
    return jax.ShapeDtypeStruct(packed, jnp.dtype("uint8") if dtype == jnp.int8 else dtype)


def can_pack_gates(shape: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Returns whether weights of gates can be packed: float32, with blocks of whole strips."""
    _, inputs, outputs = shape
    return dtype == jnp.float32 and outputs == 2 * inputs and inputs % STRIP_OUTPUTS == 0


def pack_gates(weight: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """Packs block-diagonal weights of two gates in place, in the layout that `recurrent_step` reads.

    Args:
      weight: Weights `[N, e, 2 e]`, the input gate's columns first; see `can_pack_gates`.

    Returns:
      The same memory as `[N, e / 16, e, 32]`: strips with 16 columns of each gate.
    """
    packed = weight.reshape(packed_gates_shape(weight.shape))
    for block, strips in zip(weight, packed, strict=True):
        columns = block.reshape(len(block), 2, len(strips), STRIP_OUTPUTS).transpose(2, 0, 1, 3)
        strips[:] = columns.reshape(strips.shape)  # a copy
    return packed


def packed_gates_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of packed gates; see `pack_gates`."""
    blocks, inputs, _ = shape
    return blocks, inputs // STRIP_OUTPUTS, inputs, 2 * STRIP_OUTPUTS
