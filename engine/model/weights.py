"""Parameters from safetensors files in the Hugging Face layout (spec section 4.3), or drawn at random."""

import functools
import math
import operator
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError
from .config import ModelConfig
from .griffin import Params
from .quantize import QuantizedMatrix, quantize_on_host

type HostArray = np.ndarray[Any, np.dtype[Any]]
type HostParam = HostArray | QuantizedMatrix
type AbstractParam = jax.ShapeDtypeStruct | QuantizedMatrix
type ParamPath = tuple[str | int, ...]
type Progress = Callable[[int, int], None]
"""Called with the number of parameters placed so far, and of all."""

_DTYPES: Final = {"F32": "float32", "BF16": "bfloat16", "F16": "float32"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of the checkpoint: its name and shape there."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """How a parameter is put together: tensors joined along `axis`, or a convolution's weight, [E, 1, K], turned."""

    tensors: tuple[TensorSpec, ...]
    axis: int = 0
    is_conv: bool = False

    def assemble(self, tensors: Sequence[HostArray], dtype: np.dtype[Any]) -> HostArray:
        """The parameter in `dtype`, copied at most once."""
        if self.is_conv:
            return np.ascontiguousarray(tensors[0][:, 0].T, dtype=dtype)
        if len(tensors) == 1:
            return np.asarray(tensors[0], dtype)
        shape = list(tensors[0].shape)
        shape[self.axis] = sum(t.shape[self.axis] for t in tensors)
        out, start = np.empty(shape, dtype), 0
        for tensor in tensors:
            stop = start + tensor.shape[self.axis]
            out[(slice(None),) * self.axis + (slice(start, stop),)] = tensor
            start = stop
        return out

    def split(self, parameter: HostArray) -> list[HostArray]:
        """The tensors that `assemble` makes the parameter of."""
        if self.is_conv:
            return [np.ascontiguousarray(parameter.T[:, None])]
        stops = np.cumsum([t.shape[self.axis] for t in self.tensors])
        return [np.ascontiguousarray(part) for part in np.split(parameter, stops[:-1], self.axis)]


def checkpoint_layout(config: ModelConfig) -> dict[ParamPath, ParamSpec]:
    """Every parameter of the model and the checkpoint's tensors that it is made of."""
    layout: dict[ParamPath, ParamSpec] = {
        ("embedding",): _spec("model.embed_tokens.weight", (config.vocab_size, config.width)),
        ("final_norm", "scale"): _spec("model.final_norm.weight", (config.width,)),
    }
    for index, kind in enumerate(config.block_types):
        block = _attention_layout(config) if kind == "attention" else _recurrent_layout(config)
        for path, spec in (_shared_layout(config) | block).items():
            named = tuple(TensorSpec(f"model.layers.{index}.{t.name}", t.shape) for t in spec.tensors)
            layout["blocks", index, *path] = replace(spec, tensors=named)
    return layout


def _spec(*tensors: str | tuple[int, ...], axis: int = 0) -> ParamSpec:
    names, shapes = tensors[:-1], tensors[-1]
    assert isinstance(shapes, tuple)
    return ParamSpec(tuple(TensorSpec(str(name), shapes) for name in names), axis)


def _shared_layout(config: ModelConfig) -> dict[ParamPath, ParamSpec]:
    d, f = config.width, config.mlp_width
    return {
        ("temporal_norm", "scale"): _spec("temporal_pre_norm.weight", (d,)),
        ("mlp_norm", "scale"): _spec("channel_pre_norm.weight", (d,)),
        ("mlp", "gate_up", "weight"): _spec("mlp_block.gate_proj.weight", "mlp_block.up_proj.weight", (f, d)),
        ("mlp", "gate_up", "bias"): _spec("mlp_block.gate_proj.bias", "mlp_block.up_proj.bias", (f,)),
        ("mlp", "down", "weight"): _spec("mlp_block.down_proj.weight", (d, f)),
        ("mlp", "down", "bias"): _spec("mlp_block.down_proj.bias", (d,)),
    }


def _recurrent_layout(config: ModelConfig) -> dict[ParamPath, ParamSpec]:
    d, e, n, t = config.width, config.lru_width, config.num_heads, "temporal_block."
    gates = (f"{t}rg_lru.input_gate", f"{t}rg_lru.recurrent_gate")
    size = e // n
    return {
        ("temporal", "xy", "weight"): _spec(f"{t}linear_x.weight", f"{t}linear_y.weight", (e, d)),
        ("temporal", "xy", "bias"): _spec(f"{t}linear_x.bias", f"{t}linear_y.bias", (e,)),
        ("temporal", "conv_weight"): replace(_spec(f"{t}conv_1d.weight", (e, 1, config.conv_width)), is_conv=True),
        ("temporal", "conv_bias"): _spec(f"{t}conv_1d.bias", (e,)),
        ("temporal", "rg_lru", "gate_weight"): _spec(*(f"{g}_weight" for g in gates), (n, size, size), axis=2),
        ("temporal", "rg_lru", "gate_bias"): _spec(*(f"{g}_bias" for g in gates), (n, size), axis=1),
        ("temporal", "rg_lru", "a_param"): _spec(f"{t}rg_lru.recurrent_param", (e,)),
        ("temporal", "out", "weight"): _spec(f"{t}linear_out.weight", (d, e)),
        ("temporal", "out", "bias"): _spec(f"{t}linear_out.bias", (d,)),
    }


def _attention_layout(config: ModelConfig) -> dict[ParamPath, ParamSpec]:
    d, size, t = config.width, config.head_dim, "temporal_block."
    qkv = tuple(TensorSpec(f"{t}{name}_proj.weight", (rows, d)) for name, rows in (("q", d), ("k", size), ("v", size)))
    return {
        ("temporal", "qkv"): ParamSpec(qkv),
        ("temporal", "out", "weight"): _spec(f"{t}o_proj.weight", (d, d)),
        ("temporal", "out", "bias"): _spec(f"{t}o_proj.bias", (d,)),
    }


class Checkpoint:
    """Open safetensors files, memory-mapped; a context manager.

    Raises:
      CheckpointError: a file is broken, or a tensor is missing, surplus or misshapen; the text names it.
    """

    def __init__(self, config: ModelConfig, files: Sequence[Path]) -> None:
        self._layout = checkpoint_layout(config)
        self._stack = ExitStack()
        self._files: dict[str, tuple[Path, Any]] = {}
        try:
            for path in files:
                handle = self._open(path)
                self._files |= dict.fromkeys(handle.keys(), (path, handle))
            self._check()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def dtype(self) -> str:
        """The type to run in: that of the stored embedding, float32 for float16."""
        path, handle = self._files["model.embed_tokens.weight"]
        stored = handle.get_slice("model.embed_tokens.weight").get_dtype()
        if stored not in _DTYPES:
            raise CheckpointError(f"{path}: weights of type {stored} are not supported, only {', '.join(_DTYPES)}")
        return _DTYPES[stored]

    def read(self, path: ParamPath, like: AbstractParam) -> HostParam:
        """One parameter, put together from its tensors, each of them quantised before if that is wanted."""
        spec = self._layout[path]
        tensors = (self._files[t.name][1].get_tensor(t.name) for t in spec.tensors)
        if not isinstance(like, QuantizedMatrix):
            return spec.assemble(list(tensors), like.dtype)
        values, scales = zip(*(quantize_on_host(tensor) for tensor in tensors), strict=True)
        return QuantizedMatrix(spec.assemble(values, like.values.dtype), spec.assemble(scales, like.scale.dtype))

    def _open(self, path: Path) -> Any:
        try:
            return self._stack.enter_context(safe_open(path, framework="numpy"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: is not a whole safetensors file ({error})") from None

    def _check(self) -> None:
        wanted = {t.name: t.shape for spec in self._layout.values() for t in spec.tensors}
        for name, shape in wanted.items():
            if name not in self._files:
                raise CheckpointError(f"tensor {name} {list(shape)} is missing from the checkpoint")
            path, handle = self._files[name]
            found = tuple(handle.get_slice(name).get_shape())
            if found != shape:
                raise CheckpointError(f"{path}: tensor {name} has shape {list(found)}, expected {list(shape)}")
        surplus = sorted(self._files.keys() - wanted.keys() - {"lm_head.weight"})  # tied: a copy of the embedding
        if surplus:
            path = self._files[surplus[0]][0]
            raise CheckpointError(f"{path}: tensor {surplus[0]} does not belong to this model ({len(surplus)} surplus)")


def load_params(checkpoint: Checkpoint, abstract: Params, progress: Progress | None = None) -> Params:
    """Places a checkpoint's parameters on the default device, one at a time.

    Args:
      checkpoint: where they are read; its layout is that of `abstract`'s model.
      abstract: shapes and dtypes, from `abstract_model`.
      progress: see `Progress`.
    """
    return _place(abstract, checkpoint.read, progress)


def checkpoint_tensors(params: Params, config: ModelConfig) -> dict[str, HostArray]:
    """The tensors of a checkpoint, by their names there: the inverse of `load_params`, in the parameters' types.

    Raises:
      CheckpointError: the parameters are quantised.
    """
    if any(isinstance(leaf, QuantizedMatrix) for leaf in jax.tree.leaves(params, is_leaf=_is_quantized)):
        raise CheckpointError("a quantised model cannot be written as a checkpoint; load it without quantisation")
    return {
        tensor.name: part
        for path, spec in checkpoint_layout(config).items()
        for tensor, part in zip(spec.tensors, spec.split(np.asarray(_at(params, path))), strict=True)
    }


def _at(params: Params, path: ParamPath) -> jax.Array:
    leaf: jax.Array = functools.reduce(operator.getitem, path, params)
    return leaf


def random_params(abstract: Params, seed: int, progress: Progress | None = None) -> Params:
    """Draws parameters: projections with variance 1 / fan-in, and a of the RG-LRU so that a^8 lies in [0.9, 0.999]."""

    def draw(path: ParamPath, leaf: AbstractParam) -> HostParam:
        rng = np.random.default_rng([seed, zlib.crc32("/".join(map(str, path)).encode())])
        name = str(path[-1])
        if isinstance(leaf, QuantizedMatrix):
            values, scale = np.empty(leaf.values.shape, np.int8), np.empty(leaf.scale.shape, np.float32)
            for rows, piece in _draw(name, values.shape, rng):
                values[rows], scale[rows] = quantize_on_host(piece)
            return QuantizedMatrix(values, scale)
        drawn = np.empty(leaf.shape, leaf.dtype)
        for rows, piece in _draw(name, leaf.shape, rng):
            drawn[rows] = piece
        return drawn

    return _place(abstract, draw, progress)


_PIECE: Final = 2**22
"""Numbers that are drawn at a time: in float32 a whole embedding would be larger than the rest of the model in int8."""


def _draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Iterator[tuple[slice, HostArray]]:
    """A parameter in float32, some rows at a time; how many makes no difference to the numbers."""
    if name == "a_param":
        a = np.sqrt(rng.uniform(0.9**2, 0.999**2, shape))
        yield slice(None), np.asarray(np.log(np.expm1(-np.log(a) / 8.0)), np.float32)
        return
    if name in ("bias", "gate_bias", "conv_bias", "scale"):
        yield slice(None), np.zeros(shape, np.float32)
        return
    fan_in = {"gate_weight": shape[-2], "conv_weight": shape[0]}.get(name, shape[-1])
    step = max(_PIECE // math.prod(shape[1:]), 1)
    for start in range(0, shape[0], step):
        uniform = rng.random((min(step, shape[0] - start), *shape[1:]), np.float32)
        uniform -= 0.5
        uniform *= np.float32((12.0 / fan_in) ** 0.5)
        yield slice(start, start + step), uniform


def _place(
    abstract: Params,
    make: Callable[[ParamPath, AbstractParam], HostParam],
    progress: Progress | None,
) -> Params:
    """Makes every parameter on two threads and puts it on the device; at most a few wait on the host at a time."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract, is_leaf=_is_quantized)

    def place(item: tuple[Any, AbstractParam]) -> Any:
        path, leaf = item
        return jax.tree.map(jnp.asarray, make(tuple(_key(k) for k in path), leaf))

    placed = []
    with ThreadPoolExecutor(2, "weights") as pool:
        for param in pool.map(place, leaves):
            placed.append(param)
            if progress is not None:
                progress(len(placed), len(leaves))
    return jax.tree.unflatten(tree, placed)


def _is_quantized(node: Any) -> bool:
    return isinstance(node, QuantizedMatrix)


def _key(key: Any) -> str | int:
    name: str | int = key.key
    return name
