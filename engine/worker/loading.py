"""Weights of a model source: checked first, then read or drawn, and placed on the devices."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...kernels.matrices import pack_param, pack_shapes
from ..checkpoint import open_tensors
from ..checkpoint.source import ModelSource
from ..checkpoint.weights import Checkpoint, HostParam, Placement, Put, load_params, random_params
from ..model.config import ModelConfig
from ..model.griffin import Params, abstract_model
from ..model.sharding_rules import bytes_per_device, shard_params
from ..types.config import EngineConfig
from .served import Devices, Served


class OpenWeights(NamedTuple):
    """Weights that are checked, but not read yet.

    Attributes:
      served: The model, without a number of slots.
      read: Reads or draws the parameters and places them on the devices; called with a function that is told how many
        are done, and of how many.
      num_bytes: Bytes that the parameters will take on each device.
    """

    served: Served
    read: Callable[[Callable[[int, int], None]], Params]
    num_bytes: int


@contextmanager
def open_weights(source: ModelSource, settings: EngineConfig, devices: Devices) -> Iterator[OpenWeights]:
    """Opens a source's weights and checks what can be checked without reading them.

    Args:
      settings: Settings of the engine.
      devices: Devices that will hold the parameters.

    Raises:
      CheckpointError: The weights do not fit the model.
    """
    config = source.config
    put: Put | None = _put_packed if devices.platform.kernels.packs_weights else None
    if devices.mesh is not None:
        put = Placement(devices.mesh, config, devices.shards).put
    if source.is_random:
        served, whole = _served(config, settings, devices, config.dtype, settings.quantize)
        yield _open(served, whole, partial(random_params, whole, settings.seed, put=put))
        return
    with open_tensors(source.weights, config, source.adapters) as tensors:
        checkpoint = Checkpoint(config, tensors)
        served, whole = _served(config, settings, devices, checkpoint.dtype, config.quantize or settings.quantize)
        yield _open(served, whole, partial(load_params, checkpoint, whole, put=put))


def _served(
    config: ModelConfig, settings: EngineConfig, devices: Devices, stored: str, quantize: str | None
) -> tuple[Served, Params]:
    """Returns the model without parameters, and the shapes of the parameters before they are sharded.

    Args:
      stored: Dtype of the checkpoint.
      quantize: Name of the matrices' format.
    """
    dtype = jnp.dtype(stored if settings.dtype == "auto" else settings.dtype)
    matrix_dtype = None if quantize is None else jnp.dtype(quantize)
    graph, whole = abstract_model(config, dtype, devices.platform, matrix_dtype, devices.shards)
    return Served(config, settings, devices, dtype, graph=graph), whole


def _open(served: Served, whole: Params, read: Callable[..., Params]) -> OpenWeights:
    params, specs = shard_params(whole, served.config, served.devices.shards)
    num_bytes = bytes_per_device(params, specs, served.devices.shards)
    if served.devices.platform.kernels.packs_weights:
        params = pack_shapes(params)
    return OpenWeights(replace(served, params=params, specs=specs), lambda report: read(progress=report), num_bytes)


def _put_packed(path: tuple[Any, ...], param: HostParam) -> Any:
    """Places a parameter on the default device, packed if it can be."""
    return jax.device_put(pack_param(param))
