"""Weights of a model source: checked first, then read or drawn, and placed on the devices."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ...kernels.matrices import pack_param, pack_shapes
from ..checkpoint import open_tensors
from ..checkpoint.sharded_placement import HostParam, Placement
from ..checkpoint.source import ModelSource
from ..checkpoint.weights import Checkpoint, Put, load_params, random_params
from ..devices.platform import Platform
from ..model.collectives import Collectives
from ..model.config import ModelConfig
from ..model.griffin import Params, abstract_model
from ..model.sharding_rules import bytes_per_device, shard_params
from ..types.config import EngineConfig
from .steps import Graph


class OpenWeights(NamedTuple):
    """Weights that are checked, but not read yet.

    Attributes:
      dtype: Dtype of the activations.
      graph: Code of the model.
      abstract: Shapes of the parameters of all shards side by side.
      specs: Partition specs of the parameters.
      read: Reads or draws the parameters and places them on the devices; called with a function that is told how many
        are done, and of how many.
      num_bytes: Bytes that the parameters will take on each device.
    """

    dtype: np.dtype[Any]
    graph: Graph
    abstract: Params
    specs: Params
    read: Callable[[Callable[[int, int], None]], Params]
    num_bytes: int


@contextmanager
def open_weights(
    source: ModelSource, config: EngineConfig, shards: Collectives, platform: Platform, mesh: Mesh | None
) -> Iterator[OpenWeights]:
    """Opens a source's weights and checks what can be checked without reading them.

    Args:
      config: Settings of dtype, quantization and seed.
      shards: Mesh over which the parameters are sharded.
      platform: Platform of the devices.
      mesh: Devices; None for a single one.

    Raises:
      CheckpointError: The weights do not fit the model.
    """
    put: Put | None = _put_packed if platform.kernels.packs_weights else None
    if mesh is not None:
        put = Placement(mesh, source.config, shards).put
    if source.is_random:
        dtype, graph, whole = _abstract(source.config, config, shards, source.config.dtype, platform)
        read: Callable[..., Params] = partial(random_params, whole, config.seed, put=put)
        yield _open(source.config, shards, dtype, graph, whole, read, is_packed=platform.kernels.packs_weights)
        return
    with open_tensors(source.weights, source.config, source.adapters) as tensors:
        checkpoint = Checkpoint(source.config, tensors)
        config = replace(config, quantize=source.config.quantize or config.quantize)
        dtype, graph, whole = _abstract(source.config, config, shards, checkpoint.dtype, platform)
        read = partial(load_params, checkpoint, whole, put=put)
        yield _open(source.config, shards, dtype, graph, whole, read, is_packed=platform.kernels.packs_weights)


def _open(
    model: ModelConfig,
    shards: Collectives,
    dtype: np.dtype[Any],
    graph: Graph,
    whole: Params,
    read: Callable[..., Params],
    *,
    is_packed: bool,
) -> OpenWeights:
    abstract, specs = shard_params(whole, model, shards)
    num_bytes = bytes_per_device(abstract, specs, shards)
    if is_packed:
        abstract = pack_shapes(abstract)
    return OpenWeights(dtype, graph, abstract, specs, lambda report: read(progress=report), num_bytes)


def _abstract(
    model: ModelConfig, config: EngineConfig, shards: Collectives, stored: str, platform: Platform
) -> tuple[np.dtype[Any], Graph, Params]:
    dtype = jnp.dtype(stored if config.dtype == "auto" else config.dtype)
    matrix_dtype = None if config.quantize is None else jnp.dtype(config.quantize)
    return dtype, *abstract_model(model, dtype, platform, matrix_dtype, shards)


def _put_packed(path: tuple[Any, ...], param: HostParam) -> Any:
    """Places a parameter on the default device, packed if it can be."""
    return jax.device_put(pack_param(param))
