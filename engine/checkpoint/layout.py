"""Layout of the model's parameters: the tensors that each is made of, with their names and precision in every format.

Hugging Face's names are also Roost's. Official checkpoints, which Orbax or Flax's msgpack hold, have other names and
other layouts; a `FlaxView` is a tensor's place in them.

Quantised matrices are stored as compressed-tensors stores them. In int8, a matrix is `weight` and `weight_scale`, with
a scale for each row. In int4 it is `weight_packed`, `weight_scale`, with a scale for each group of inputs, and
`weight_shape`. The lowest bits of a packed word are the first input's, and an offset makes the values unsigned, so the
words have the bytes of an `Int4Matrix`. Its embedding is packed in the same way in 8 bits with a scale for each row, or
not quantised. Tensors are converted to another precision while they are read.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from ...kernels.matrices import Int4Matrix, Int8Matrix, QuantizedMatrix
from ..model.config import ModelConfig, ParamPath
from ..types.errors import CheckpointError
from ..types.host_memory import HostArray
from .format import BFLOAT16, ReadRows, StoredTensor, Tensors

EMBEDDING: Final = "model.embed_tokens.weight"
"""Name of the embedding."""

EMBEDDING_ARRAY: Final = "embedder.input_embedding"
"""Name of the embedding in official checkpoints."""


@dataclass(frozen=True, slots=True)
class FlaxView:
    """Place of a Hugging Face tensor in an official array.

    Attributes:
      key: Name of the array: its path joined by dots.
      index: Index into the leading axes of an array that holds two tensors, such as [2, D, F] or [2, 1, 1, F].
      turn: Difference of the layouts: none, transposed, or depthwise, where [K, E] stands for [E, 1, K].
    """

    key: str
    index: tuple[int, ...] = ()
    turn: Literal["none", "transposed", "depthwise"] = "none"

    def of(self, array: Any) -> Any:
        """Returns the tensor as a view of the array, which may be NumPy's or TensorStore's.

        Raises:
          IndexError: The array has too few axes.
        """
        part = array[self.index] if self.index else array
        if self.turn == "none":
            return part
        return part.T[:, None] if self.turn == "depthwise" else part.T

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the tensor in an array of a shape; this one if the array has too few axes."""
        try:
            found: HostArray = self.of(np.broadcast_to(np.int8(0), shape))
            return found.shape
        except (IndexError, ValueError):
            return shape


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Tensor of a checkpoint.

    Attributes:
      name: Name of the tensor in the checkpoint.
      shape: Shape of the tensor in the checkpoint.
      official: Place of the tensor, or of the matrix that it belongs to, in an official checkpoint.
    """

    name: str
    shape: tuple[int, ...]
    official: FlaxView

    @property
    def is_matrix(self) -> bool:
        """Whether int8 and int4 quantise the tensor: the embedding and all matrices except gates."""
        return len(self.shape) == 2 and self.name.endswith(".weight")

    @property
    def is_embedding(self) -> bool:
        """Whether the tensor is the embedding."""
        return self.name == EMBEDDING

    @property
    def packed_name(self) -> str:
        """Name of the tensor of a matrix's values in a checkpoint in int4."""
        return f"{self.name}_packed"

    def quantized(self, quantize: str, group_size: int) -> "list[tuple[TensorSpec, Numbers]]":
        """Returns the tensors, and their dtypes, of a matrix in int8 or int4: values and scales, and in int4 the shape.

        Args:
          group_size: Largest number of inputs that share a scale in int4; those of a row of the embedding all do.
        """
        outputs, inputs = self.shape
        if quantize == "int8":
            return [(self, _BYTES), (replace(self, name=f"{self.name}_scale", shape=(outputs, 1)), _FLOATS)]
        in_word, groups = (4, 1) if self.is_embedding else (8, inputs // math.gcd(inputs, group_size))
        return [
            (replace(self, name=self.packed_name, shape=(outputs, inputs // in_word)), _WORDS),
            (replace(self, name=f"{self.name}_scale", shape=(outputs, groups)), _FLOATS),
            (replace(self, name=f"{self.name}_shape", shape=(2,)), _SIZES),
        ]


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """Composition of a parameter.

    Attributes:
      tensors: Tensors that are concatenated.
      axis: Axis along which they are concatenated.
      is_conv: Whether the parameter is [K, E], stored as a convolution's weight of shape [E, 1, K].
    """

    tensors: tuple[TensorSpec, ...]
    axis: int = 0
    is_conv: bool = False

    def views(self, parameter: HostArray) -> list[HostArray]:
        """Returns views of the parameter's memory as its tensors, for reading or writing."""
        if self.is_conv:
            return [parameter.T[:, None]]
        sizes = [t.shape[self.axis] for t in self.tensors]
        return np.split(parameter, list(itertools.accumulate(sizes))[:-1], self.axis)


def checkpoint_layout(config: ModelConfig) -> dict[ParamPath, ParamSpec]:
    """Returns the composition of every parameter of the model, by its path."""
    layout: dict[ParamPath, ParamSpec] = {
        ("embedding",): _spec(_tensor(EMBEDDING, (config.vocab_size, config.width), EMBEDDING_ARRAY)),
        ("final_norm", "scale"): _spec(_tensor("model.final_norm.weight", (config.width,), "final_norm.scale")),
    }
    for index, kind in enumerate(config.block_types):
        block = _attention_layout(config) if kind == "attention" else _recurrent_layout(config)
        layer = _shared_layout(config) | {
            ("temporal", *path): _inside(spec, "temporal_block.", f"{kind}_block.") for path, spec in block.items()
        }
        for path, spec in layer.items():
            layout["blocks", index, *path] = _inside(spec, f"model.layers.{index}.", f"blocks.{index}.")
    return layout


def tensor_specs(config: ModelConfig) -> Iterator[TensorSpec]:
    """Returns every tensor of a checkpoint, layer by layer."""
    return itertools.chain.from_iterable(spec.tensors for spec in checkpoint_layout(config).values())


def _shared_layout(config: ModelConfig) -> dict[ParamPath, ParamSpec]:
    d, f, up = config.width, config.mlp_width, "mlp_block.ffw_up"
    return {
        ("temporal_norm", "scale"): _spec(_tensor("temporal_pre_norm.weight", (d,), "temporal_pre_norm.scale")),
        ("mlp_norm", "scale"): _spec(_tensor("channel_pre_norm.weight", (d,), "channel_pre_norm.scale")),
        ("mlp", "gate_up", "weight"): _spec(
            _matrix("mlp_block.gate_proj.weight", f, d, f"{up}.w", 0),
            _matrix("mlp_block.up_proj.weight", f, d, f"{up}.w", 1),
        ),
        ("mlp", "gate_up", "bias"): _spec(
            _tensor("mlp_block.gate_proj.bias", (f,), f"{up}.b", 0, 0, 0),
            _tensor("mlp_block.up_proj.bias", (f,), f"{up}.b", 1, 0, 0),
        ),
        ("mlp", "down", "weight"): _spec(_matrix("mlp_block.down_proj.weight", d, f, "mlp_block.ffw_down.kernel")),
        ("mlp", "down", "bias"): _spec(_tensor("mlp_block.down_proj.bias", (d,), "mlp_block.ffw_down.bias")),
    }


def _recurrent_layout(config: ModelConfig) -> dict[ParamPath, ParamSpec]:
    d, e, n = config.width, config.lru_width, config.num_heads
    gate, conv = (n, e // n, e // n), FlaxView("conv_1d.w", turn="depthwise")
    gates = {"rg_lru.input_gate": "rg_lru.input_gate", "rg_lru.recurrent_gate": "rg_lru.a_gate"}.items()
    return {
        ("xy", "weight"): _spec(*(_matrix(f"{x}.weight", e, d, f"{x}.kernel") for x in ("linear_x", "linear_y"))),
        ("xy", "bias"): _spec(*(_tensor(f"{x}.bias", (e,), f"{x}.bias") for x in ("linear_x", "linear_y"))),
        ("conv_weight",): ParamSpec((TensorSpec("conv_1d.weight", (e, 1, config.conv_width), conv),), is_conv=True),
        ("conv_bias",): _spec(_tensor("conv_1d.bias", (e,), "conv_1d.b")),
        ("rg_lru", "gate_weight"): _spec(*(_tensor(f"{x}_weight", gate, f"{y}.w") for x, y in gates), axis=2),
        ("rg_lru", "gate_bias"): _spec(*(_tensor(f"{x}_bias", gate[:2], f"{y}.b") for x, y in gates), axis=1),
        ("rg_lru", "a_param"): _spec(_tensor("rg_lru.recurrent_param", (e,), "rg_lru.a_param")),
        ("out", "weight"): _spec(_matrix("linear_out.weight", d, e, "linear_out.kernel")),
        ("out", "bias"): _spec(_tensor("linear_out.bias", (d,), "linear_out.bias")),
    }


def _attention_layout(config: ModelConfig) -> dict[ParamPath, ParamSpec]:
    d, sizes = config.width, {"q": config.width, "k": config.key_width, "v": config.key_width}
    return {
        ("qkv",): _spec(*(_matrix(f"{x}_proj.weight", e, d, f"proj_{x}.kernel") for x, e in sizes.items())),
        ("out", "weight"): _spec(_matrix("o_proj.weight", d, d, "proj_final.kernel")),
        ("out", "bias"): _spec(_tensor("o_proj.bias", (d,), "proj_final.bias")),
    }


def _spec(*tensors: TensorSpec, axis: int = 0) -> ParamSpec:
    return ParamSpec(tensors, axis)


def _tensor(name: str, shape: tuple[int, ...], array: str, *index: int) -> TensorSpec:
    return TensorSpec(name, shape, FlaxView(array, index))


def _matrix(name: str, outputs: int, inputs: int, array: str, *index: int) -> TensorSpec:
    return TensorSpec(name, (outputs, inputs), FlaxView(array, index, "transposed"))


def _inside(spec: ParamSpec, prefix: str, official_prefix: str) -> ParamSpec:
    """Returns the parameter with prefixes of its tensors' names."""
    tensors = (
        replace(t, name=prefix + t.name, official=replace(t.official, key=official_prefix + t.official.key))
        for t in spec.tensors
    )
    return replace(spec, tensors=tuple(tensors))


type Quantize = Callable[[StoredTensor], Int4Matrix]
"""Reads a whole matrix and quantises it to 4 bits."""


_SIGN: Final = np.uint8(0x80)
"""Adds 128 to a byte in two's complement, as packing in 8 bits does."""


class Numbers(NamedTuple):
    """Dtypes that a tensor may have.

    Attributes:
      title: Name for messages.
      dtypes: The dtypes.
    """

    title: str
    dtypes: tuple[np.dtype[Any], ...]


_FLOATS: Final = Numbers("a floating-point type", (np.dtype("float32"), BFLOAT16, np.dtype("float16")))
_BYTES: Final = Numbers("int8", (np.dtype("int8"),))
_WORDS: Final = Numbers("int32", (np.dtype("int32"),))
_SIZES: Final = Numbers("int64", (np.dtype("int64"), np.dtype("int32")))


def converted(
    tensors: Tensors,
    config: ModelConfig,
    dtype: np.dtype[Any] | None,
    quantize: str | None = None,
    quantized: Quantize | None = None,
) -> Tensors:
    """Returns tensors that are converted when they are read.

    Args:
      tensors: Tensors of the checkpoint, by name. Matrices that are stored quantised stay as they are, except that the
        embedding of a checkpoint in int4 becomes 8 bits.
      config: The model's config.
      dtype: Dtype of tensors that are not quantised; None keeps each tensor's own.
      quantize: "int8" or "int4" for matrices that are not quantised yet, with further tensors for their scales; None
        quantises none.
      quantized: Quantises a matrix of a layer to int4; None searches scales without data.
    """
    form = quantize or config.quantize

    @lru_cache(1)
    def matrix(tensor: StoredTensor, *, in_8_bits: bool) -> QuantizedMatrix:
        if quantized is not None and not in_8_bits:
            return quantized(tensor)
        kind = Int8Matrix if in_8_bits else Int4Matrix
        parts = [kind.quantize(piece) for _, piece in tensor.pieces()]
        return kind(*map(np.concatenate, zip(*parts, strict=True)))

    found: dict[str, StoredTensor] = {}
    for spec in tensor_specs(config):
        tensor = tensors.get(spec.name)
        if tensor is None or tensor.dtype == np.int8:
            new = [tensors[stored.name] for stored, _ in stored_specs(spec, config, tensors)]
        elif form is None or not spec.is_matrix:
            new = [_in_dtype(tensor, dtype)]
        else:
            in_8_bits = form == "int8" or spec.is_embedding
            specs = [each for each, _ in spec.quantized(form, config.int4_group_size)]
            new = _in_bits(tensor, specs, partial(matrix, tensor, in_8_bits=in_8_bits), in_8_bits=in_8_bits)
        found |= {each.name: each for each in new}
    return found


def _in_dtype(tensor: StoredTensor, dtype: np.dtype[Any] | None) -> StoredTensor:
    wanted = dtype or tensor.kept_dtype or tensor.dtype

    def open_tensor() -> ReadRows:
        read = tensor.reader()
        return lambda rows: read(rows).astype(wanted)

    return tensor if wanted == tensor.dtype else replace(tensor, dtype=wanted, open=open_tensor, kept_dtype=None)


def _in_bits(
    tensor: StoredTensor, specs: Sequence[TensorSpec], matrix: Callable[[], QuantizedMatrix], *, in_8_bits: bool
) -> list[StoredTensor]:
    """Returns the tensors of a matrix that is quantised when it is read."""
    is_packed = len(specs) > 2

    def values(rows: slice) -> HostArray:
        found = matrix().values[rows]
        return words_of(found) if is_packed else found

    def scale(rows: slice) -> HostArray:
        found: HostArray = matrix().scale[rows]
        return found.reshape(len(found), -1)

    readers: tuple[ReadRows, ...] = values, scale, np.array(tensor.shape).__getitem__
    dtypes = "int32" if is_packed else "int8", "float32" if in_8_bits else "float16", "int64"
    return [
        StoredTensor(spec.name, tensor.file, spec.shape, np.dtype(dtype), partial(_itself, read))
        for spec, dtype, read in zip(specs, dtypes, readers, strict=False)
    ]


def _itself(read: ReadRows) -> ReadRows:
    return read


def stored_specs(spec: TensorSpec, config: ModelConfig, tensors: Tensors) -> list[tuple[TensorSpec, Numbers]]:
    """Returns the tensors, and their dtypes, that stand for a tensor in a checkpoint with this config."""
    is_plain = config.quantize == "int4" and spec.is_embedding and spec.packed_name not in tensors
    if config.quantize is None or not spec.is_matrix or is_plain:
        return [(spec, _FLOATS)]
    return spec.quantized(config.quantize, config.int4_group_size)


def words_of(values: HostArray) -> HostArray:
    """Returns the packed words of rows of an `Int8Matrix` or `Int4Matrix`, given its values."""
    unsigned = values if values.dtype == np.uint8 else values.view(np.uint8) ^ _SIGN
    return np.ascontiguousarray(unsigned).view("<i4")


def fill_rows(into: HostArray | QuantizedMatrix, rows: slice, piece: HostArray) -> None:
    """Writes rows of numbers into an array, or quantised into a matrix."""
    if isinstance(into, np.ndarray):
        into[rows] = piece
        return
    for part, quantized in zip(into, into.quantize(piece), strict=True):
        part[rows] = quantized


def read_matrix(spec: TensorSpec, tensors: Tensors, into: QuantizedMatrix) -> None:
    """Reads a matrix, several rows at a time, and quantises it if it is not stored so.

    Args:
      spec: The matrix.
      tensors: Tensors of the checkpoint, in the form of `into` or not quantised.
      into: Matrix to fill.

    Raises:
      CheckpointError: A tensor cannot be read, or holds NaN, an infinite number or too large a scale.
    """
    is_packed = spec.packed_name in tensors
    stored = tensors[spec.packed_name if is_packed else spec.name]
    if stored.dtype.kind != "i":
        for rows, piece in stored.pieces():
            fill_rows(into, rows, piece)
        return
    for rows, piece in stored.pieces():
        into.values[rows] = _values_of(piece, into) if is_packed else piece
    stored = tensors[f"{spec.name}_scale"]
    scale = stored.whole()
    if scale.size and np.abs(scale).max() > np.finfo(into.scale.dtype).max:
        raise CheckpointError(
            f"{stored.file}: tensor {stored.name} holds {np.abs(scale).max():g}, but scales in int4 must be at most "
            f"{np.finfo(into.scale.dtype).max:g}; is the file broken?"
        )
    into.scale[:] = scale.reshape(into.scale.shape)


def _values_of(words: HostArray, like: QuantizedMatrix) -> HostArray:
    """Returns the values of packed words, as a matrix of the class of `like` has them."""
    unsigned = np.ascontiguousarray(words).view(np.uint8)
    return unsigned if isinstance(like, Int4Matrix) else (unsigned ^ _SIGN).view(np.int8)
