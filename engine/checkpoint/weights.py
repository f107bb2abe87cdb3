"""Parameters of a model: read from a checkpoint or drawn at random, and placed on devices."""

import functools
import math
import operator
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ...kernels.matrices import FORMATS, QuantizedMatrix, is_quantized, table_dtype
from ..model.config import ModelConfig, ParamPath, Params
from ..model.sharding import ShardingRule, leaf_rules
from ..types.config import MeshShape
from ..types.errors import CheckpointError
from ..types.host_memory import HostArray
from .format import StoredTensor, Tensors
from .layout import EMBEDDING, TensorSpec, checkpoint_layout, fill_rows, read_matrix, stored_specs

type AbstractParam = jax.ShapeDtypeStruct | QuantizedMatrix
"""Shape and dtype of a parameter."""

type HostParam = HostArray | QuantizedMatrix
"""A parameter in host memory."""

type Put = Callable[[tuple[Any, ...], HostParam], Any]
"""Places a parameter on devices; called with its path, as JAX's tree keys, and its arrays."""

type Progress = Callable[[int, int], None]
"""Called with the number of placed parameters and of all parameters."""


class Checkpoint:
    """Checkpoint of a model, read parameter by parameter.

    Args:
      config: The model's config.
      tensors: Tensors of the checkpoint, by name.

    Raises:
      CheckpointError: A tensor is missing, unexpected, or of the wrong shape or dtype; the message names it.
    """

    def __init__(self, config: ModelConfig, tensors: Tensors) -> None:
        self._config = config
        self._layout = checkpoint_layout(config)
        self._tensors = tensors
        self._check()

    @property
    def dtype(self) -> str:
        """Default dtype of activations: the stored embedding's, or the config's if that is int8; never float16."""
        stored = self._tensors.get(EMBEDDING)
        if stored is None or stored.dtype == np.int8:
            return "bfloat16" if self._config.dtype == "bfloat16" else "float32"
        return "float32" if stored.dtype == np.float16 else stored.dtype.name

    def read(self, path: ParamPath, like: AbstractParam) -> HostParam:
        """Returns a parameter in host memory, joined from its tensors several rows at a time.

        Args:
          path: Path of the parameter.
          like: Shape and dtype; a quantised matrix quantises the parameter.

        Raises:
          CheckpointError: A tensor cannot be read, or holds NaN or an infinite number.
        """
        spec = self._layout[path]
        if spec.tensors[0].is_matrix:
            self._check_format(path, like)
        if is_quantized(like):
            matrix = type(like)(*map(_empty, like))
            stops = np.cumsum([t.shape[0] for t in spec.tensors])[:-1]
            for tensor, *views in zip(spec.tensors, *(np.split(part, stops) for part in matrix), strict=True):
                read_matrix(tensor, self._tensors, type(like)(*views))
            return matrix
        parameter = _empty(like)
        for tensor, view in zip(spec.tensors, spec.views(parameter), strict=True):
            for rows, piece in self._tensors[tensor.name].pieces():
                view[rows] = piece
        return parameter

    def read_embeddings(self, tokens: HostArray) -> HostArray:
        """Returns the embeddings of token ids `[*shape]` in float32, `[*shape, D]`, of a model that is not quantised.

        Raises:
          CheckpointError: The embedding cannot be read, or holds NaN or an infinite number.
        """
        wanted, places = np.unique(tokens, return_inverse=True)
        found = np.empty((len(wanted), self._config.width), np.float32)
        for rows, piece in self._tensors[EMBEDDING].pieces():
            here = slice(*np.searchsorted(wanted, (rows.start, rows.stop)))
            found[here] = piece[wanted[here] - rows.start]
        return found[places.reshape(tokens.shape)]

    def _check_format(self, path: ParamPath, like: AbstractParam) -> None:
        stored = self._config.quantize
        if stored is None:
            return
        kept = table_dtype(jnp.dtype(stored)).name if path == ("embedding",) else stored
        if not isinstance(like, FORMATS[kept]):
            raise CheckpointError(
                f"this checkpoint is stored in {stored} and can be loaded with quantize {stored} only"
            )

    def _check(self) -> None:
        whole = [t for spec in self._layout.values() for t in spec.tensors]
        wanted = [pair for t in whole for pair in stored_specs(t, self._config, self._tensors)]
        for tensor, numbers in wanted:
            stored = self._stored(tensor)
            if stored.shape != tensor.shape:
                raise CheckpointError(
                    f"{stored.file}: tensor {tensor.name} has shape {list(stored.shape)}, but the config asks for "
                    f"{list(tensor.shape)}; use the config that belongs to these weights"
                )
            if stored.dtype not in numbers.dtypes:
                raise CheckpointError(
                    f"{stored.file}: tensor {tensor.name} is stored as {stored.dtype}, but the config asks for "
                    f"{numbers.title}; use the config that belongs to these weights"
                )
        names = {tensor.name for tensor, _ in wanted} | {"lm_head.weight"}  # tied: a copy of the embedding
        if surplus := sorted(self._tensors.keys() - names):
            raise CheckpointError(
                f"{self._tensors[surplus[0]].file}: tensor {surplus[0]} does not belong to this model "
                f"({len(surplus)} surplus); use the config that belongs to these weights"
            )

    def _stored(self, spec: TensorSpec) -> StoredTensor:
        found = self._tensors.get(spec.name)
        if found is None:
            files = sorted({t.file for t in self._tensors.values()})
            place = files[0].parent if len(files) > 1 else files[0] if files else "the checkpoint"
            raise CheckpointError(
                f"{place}: tensor {spec.name} {list(spec.shape)} is missing; download every file of the checkpoint, "
                "and the config that belongs to it"
            )
        return found


def load_params(
    checkpoint: Checkpoint,
    abstract: Params,
    progress: Progress | None = None,
    put: Put | None = None,
) -> Params:
    """Reads a checkpoint's parameters and places them on devices, one at a time.

    Args:
      abstract: Shapes and dtypes of the parameters, from `abstract_model`.
      progress: Callback for progress.
      put: Places a parameter, given with its path; None places it on the default device.
    """
    return _place(abstract, checkpoint.read, progress, put)


def checkpoint_tensors(params: Params, config: ModelConfig) -> dict[str, HostArray]:
    """Returns a checkpoint's tensors, by name, from parameters: the inverse of `load_params`.

    Args:
      params: Parameters of the model; tensors keep their dtypes.
      config: The model's config.

    Raises:
      CheckpointError: The parameters are quantised.
    """
    if any(map(is_quantized, jax.tree.leaves(params, is_leaf=is_quantized))):
        raise CheckpointError("a quantised model cannot be written as a checkpoint; load it without quantisation")
    return {
        tensor.name: part
        for path, spec in checkpoint_layout(config).items()
        for tensor, part in zip(
            spec.tensors,
            map(np.ascontiguousarray, spec.views(np.asarray(functools.reduce(operator.getitem, path, params)))),
            strict=True,
        )
    }


def random_params(abstract: Params, seed: int, progress: Progress | None = None, put: Put | None = None) -> Params:
    """Draws parameters and places them on devices.

    Projections have variance 1 / fan-in, and Λ of the RG-LRU is drawn such that a at a recurrence gate of 1 is in
    [0.9, 0.999].

    Args:
      abstract: Shapes and dtypes of the parameters, from `abstract_model`.
      progress: Callback for progress.
      put: Places a parameter, given with its path; None places it on the default device.
    """

    def draw(path: ParamPath, leaf: AbstractParam) -> HostParam:
        rng = np.random.default_rng([seed, zlib.crc32("/".join(map(str, path)).encode())])
        name = str(path[-1])
        drawn = type(leaf)(*map(_empty, leaf)) if is_quantized(leaf) else _empty(leaf)
        for rows, piece in _draw(name, leaf.shape, rng):
            fill_rows(drawn, rows, piece)
        return drawn

    return _place(abstract, draw, progress, put)


_PIECE: Final = 2**22
"""Elements drawn at a time: a whole embedding in float32 would be larger than the rest of the model in int8."""


def _draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Iterator[tuple[slice, HostArray]]:
    """Yields a parameter in float32, several rows at a time. The values do not depend on that number of rows."""
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
    put: Put | None,
) -> Params:
    """Creates parameters on two threads and places each on its devices. Only a few are in host memory at a time.

    The largest are created first, so that host memory peaks before the others are placed.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract, is_leaf=is_quantized)
    order = sorted(range(len(leaves)), key=lambda index: -_num_bytes(leaves[index][1]))

    def place(index: int) -> tuple[int, Any]:
        path, leaf = leaves[index]
        param = make(tuple(key.key for key in path), leaf)
        return index, jax.device_put(param) if put is None else put(path, param)

    placed: dict[int, Any] = {}
    with ThreadPoolExecutor(2, "weights") as pool:
        try:
            for index, param in pool.map(place, order):
                placed[index] = param
                if progress is not None:
                    progress(len(placed), len(leaves))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return jax.tree.unflatten(tree, [placed[index] for index in range(len(leaves))])


def _empty(like: Any) -> HostArray:
    """Returns an uninitialised array that JAX's CPU device can use without a copy."""
    num_bytes = math.prod(like.shape) * like.dtype.itemsize
    memory = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + num_bytes].view(like.dtype).reshape(like.shape)


_ALIGNMENT: Final = 64
"""Alignment in bytes that XLA requires of memory it uses without a copy."""


def _num_bytes(param: AbstractParam) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(param))


def sharded_over(mesh: Mesh, config: ModelConfig, shape: MeshShape) -> Put:
    """Returns a function that shards a parameter over a mesh. Each process places only its own devices' shards.

    Args:
      mesh: The devices.
      config: The model's config.
      shape: Sizes of the mesh's axes.
    """

    def put(rule: ShardingRule, whole: HostArray) -> jax.Array:
        global_shape = rule.global_shape(whole.shape, shape.model)

        def shard(index: tuple[slice, ...] | None) -> HostArray:
            assert index is not None
            start = (index[rule.axis].start or 0) if rule.segments else 0
            return rule.shard(whole, start * shape.model // global_shape[rule.axis], shape.model)

        return jax.make_array_from_callback(global_shape, NamedSharding(mesh, rule.partition_spec), shard)

    return lambda path, param: jax.tree.map(put, leaf_rules(path, param, config), param)
