"""The programs that serving a model takes, as shapes: nothing is allocated, read or compiled yet.

A start of the server and a compilation ahead of time both begin here, so that the measured programs are the served
programs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ..devices.platform import Platform
from ..model.collectives import Collectives
from ..model.config import ModelConfig
from ..model.state_layout import state_layout
from ..prefix_cache.saved_state import SavedStateFormat
from ..types.config import EngineConfig, StepLimits
from ..types.mesh import slot_order
from ..types.output_constraint import words_of_mask
from ..types.snapshot import SnapshotFormat
from ..types.speculation import Speculation
from .loading import OpenWeights
from .programs import DevicePrograms, ModelShapes, StepShapes, device_programs, new_pool, step_shapes
from .steps import StatePool


@dataclass(frozen=True, slots=True)
class DeviceLayout:
    """A model's place on its devices.

    Attributes:
      dtype: Dtype of the activations.
      platform: Platform of the devices.
      shards: Mesh over which the model and its slots are sharded.
      mesh: Devices; None for a single one.
      slots: Number of requests that run at a time.
      rows: Number of rows of the state pool: the slots, with padding so that every shard has as many.
      step_shapes: Shapes for which programs are compiled.
      speculation: Settings of drafted tokens; None drafts none.
    """

    model: ModelConfig
    dtype: np.dtype[Any]
    platform: Platform
    shards: Collectives
    mesh: Mesh | None
    slots: int
    rows: int
    step_shapes: StepShapes
    speculation: Speculation | None = None


class ServedPrograms(NamedTuple):
    """Device programs of a served model.

    Attributes:
      layout: The model's place on its devices.
      model: Shapes with which the programs are traced.
    """

    layout: DeviceLayout
    model: ModelShapes
    programs: DevicePrograms


class Devices(NamedTuple):
    """Devices to compile for.

    Attributes:
      platform: Decisions that depend on their hardware.
      mesh: The devices; None for a single one.
      device: The single device, which need not exist here; None for JAX's default device, or on a mesh.
    """

    platform: Platform
    shards: Collectives = Collectives()
    mesh: Mesh | None = None
    device: jax.Device | None = None


def served_programs(
    config: ModelConfig, settings: EngineConfig, weights: OpenWeights, devices: Devices, slots: int
) -> ServedPrograms:
    """Returns the programs that the engine runs with these settings.

    Args:
      settings: Settings of the engine; `slots` is not read.
      weights: Weights of the model, not read yet.
      devices: Devices that the programs run on.
      slots: Number of requests that run at a time.
    """
    layout = device_layout(config, settings, weights.dtype, devices, slots)
    pool = jax.eval_shape(partial(pool_of, layout))
    model = ModelShapes(
        config,
        weights.graph,
        weights.abstract,
        pool,
        weights.dtype,
        devices.shards,
        weights.specs,
        devices.mesh,
        devices.device,
    )
    reads_slots = settings.state_cache_inexact or settings.request_snapshots
    programs = device_programs(
        model,
        layout.step_shapes,
        reads_slots=reads_slots,
        replays=settings.request_snapshots,
        speculation=layout.speculation,
    )
    return ServedPrograms(layout, model, programs)


def pool_of(layout: DeviceLayout) -> StatePool:
    """Returns an empty state pool of a model's place."""
    has_drafts = layout.speculation is not None
    return new_pool(layout.model, layout.rows, layout.dtype, layout.platform, layout.shards, drafts=has_drafts)


def device_layout(
    config: ModelConfig, settings: EngineConfig, dtype: np.dtype[Any], devices: Devices, slots: int
) -> DeviceLayout:
    """Returns a model's place on its devices; see `served_programs`."""
    count = devices.shards.count
    rows = -(-max(slots, 2) // count) * count  # a step of one row takes another path, slow and with other bits
    steps = step_shapes(config, settings.prefill_chunk, devices.platform)
    speculation = settings.speculation
    return DeviceLayout(config, dtype, devices.platform, devices.shards, devices.mesh, slots, rows, steps, speculation)


def state_format(model: ModelConfig, dtype: str, identity: str) -> SavedStateFormat:
    """Returns the format of a model's saved states.

    Args:
      dtype: Dtype of the activations.
      identity: Identity of the model; see `model_identity`.
    """
    state = state_layout(model, dtype)
    recurrent = {array.name: (array.shape, array.dtype) for array in state.recurrent}
    (window, *token), window_dtype = state.window
    hidden = (model.width,), dtype
    snapshot = SnapshotFormat(window, recurrent, (tuple(token), window_dtype), hidden)
    return SavedStateFormat(identity, model.vocab_size, snapshot)


def step_limits(
    layout: DeviceLayout, decode_rows: Iterable[int], config: EngineConfig, decode_steps: int = 1
) -> StepLimits:
    """Returns the limits of a step.

    Args:
      layout: The model's place on its devices.
      decode_rows: Numbers of rows of the decode programs, in rising order.
      decode_steps: Maximum number of tokens per request and dispatch.
    """
    shapes, shards = layout.step_shapes, layout.shards
    return StepLimits(
        prefill_chunk=config.prefill_chunk,
        prefill_rows=shapes.prefill_rows,
        prefill_layer_slices=len(shapes.layer_slices),
        decode_steps=decode_steps,
        decode_rows=tuple(decode_rows),
        idle_rows_per_move=layout.platform.idle_rows_per_move,
        mask_words=words_of_mask(layout.model.vocab_size),
        slot_order=slot_order(layout.slots, layout.rows, shards.data, shards.model),
        shard_rows=layout.rows // shards.data,
        itl_target_s=None if config.itl_target_ms is None else config.itl_target_ms / 1e3,
        speculation=layout.speculation,
    )
