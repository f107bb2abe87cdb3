"""Builds engines: joins hosts, loads weights, allocates the state pool and compiles every program; slow."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import Final

import jax
import numpy as np

from .checkpoint.identity import model_identity
from .checkpoint.source import ModelSource
from .core.config import EngineConfig, StepLimits
from .core.host_memory import available_memory, release_freed_memory
from .core.mesh import slot_order
from .core.output_constraint import words_of_mask
from .core.snapshot import SnapshotFormat
from .distributed.hosts import connect_followers, connect_leader, join, min_over_hosts
from .engine_core import EngineCore
from .model.collectives import Collectives
from .model.griffin import Params
from .model.sharding_rules import slot_bytes
from .platform import affordable_slots, choose_mesh_shape, choose_platform, numerics, open_mesh
from .prefix_cache.cache import PrefixCache
from .prefix_cache.disk import DiskTier
from .prefix_cache.saved_state import SavedStateFormat
from .scheduling.scheduler import Scheduler
from .startup import configure_jax
from .worker.compilation import (
    CompileCounter,
    CompiledProgram,
    compile_all,
    lowerings,
    pool_partition_specs,
    shard_shapes,
)
from .worker.executor import DeviceLayout, Executor
from .worker.loading import OpenWeights, open_weights
from .worker.programs import DeviceArrays, new_pool, snapshot_shapes
from .worker.runner import ModelRunner
from .worker.served import Devices, ServedPrograms, served_programs
from .worker.steps import StatePool

type Progress = Callable[[str, int, int], None]
"""Called with a stage ("weights", "compile"), how much of it is done, and how much there is; by several threads."""

_BYTES_PER_WEIGHT: Final = {None: 2, "int8": 1}
"""Approximate bytes of a weight, by quantization."""

_DISPATCH_SECONDS: Final = 0.02
"""Maximum duration of a decode dispatch of several tokens."""

_CACHE_SHARE: Final = 1 / 8
"""Default share of free host memory given to the prefix cache."""


def load_engine(source: ModelSource, config: EngineConfig, progress: Progress | None = None) -> EngineCore:
    """Returns an engine that is ready to serve.

    Args:
      source: The model.
      config: Settings of the engine.
      progress: Called while weights are loaded and programs are compiled.

    Raises:
      CheckpointError: The weights do not fit the model.
      ConfigError: The slots do not fit into memory, there are too few devices, or a host is missing.
    """
    runner = load_runner(source, config, progress)
    scheduler = Scheduler(
        runner.slots,
        config.max_queue,
        runner.limits,
        config.max_queue_tokens,
        config.tenants,
        reserved_slots=_reserved_slots(config, runner.slots),
        cache=_prefix_cache(config, runner),
    )
    return EngineCore(scheduler, runner, runner.state_format, runner.executor.leader)


def load_runner(source: ModelSource, config: EngineConfig, progress: Progress | None = None) -> ModelRunner:
    """Returns a runner whose programs are all compiled; see `load_engine`."""
    executor = _load_executor(source, config, progress or _no_progress)
    layout = executor.layout
    h, conv, ring = ((x.shape, x.dtype.name) for x in snapshot_shapes(layout.model, layout.dtype))
    window, token = ring[0][0], (ring[0][1:], ring[1])
    model = model_identity(source, layout.dtype.name, config.quantize, config.seed)
    snapshot = SnapshotFormat(window, h, conv, token, ((layout.model.width,), layout.dtype.name))
    state_format = SavedStateFormat(model, layout.model.vocab_size, snapshot)
    limits = _step_limits(executor, config)
    return ModelRunner(executor, limits, state_format, keeps_snapshots=config.state_cache_gib != 0)


def follow(
    source: ModelSource, config: EngineConfig, on_loss: Callable[[], None], progress: Progress | None = None
) -> None:
    """Runs this process as a follower of several hosts, until the leader shuts down.

    Args:
      source: The model, as the leader has it.
      config: Settings of the engine, as the leader has them.
      on_loss: Called by another thread if the leader is lost.
      progress: Called while weights are loaded and programs are compiled.

    Raises:
      CheckpointError: The weights do not fit the model.
      ConfigError: The slots do not fit into memory, or a host is missing.
      EngineDeadError: The leader has been lost.
    """
    assert config.hosts is not None
    executor = _load_executor(source, config, progress or _no_progress)
    executor.follow(connect_leader(config.hosts, on_loss).calls())


def _no_progress(stage: str, done: int, total: int) -> None:
    pass


def _load_executor(source: ModelSource, config: EngineConfig, report: Progress) -> Executor:
    hosts = config.hosts
    configure_jax(config.compile_cache, has_hosts=hosts is not None)
    if hosts is not None:
        join(hosts)
    shards = _mesh_shape(source, config)
    platform, mesh = choose_platform(shards), open_mesh(shards)
    devices = Devices(platform, shards, mesh)
    with open_weights(source, config, shards, platform, mesh) as weights:
        slots = _choose_slots(source, config, weights, devices)
        served = served_programs(source.config, config, weights, devices, slots)
        layout, programs = served.layout, served.programs
        pool = _allocate_pool(layout)
        params, compiled = _load_and_compile(weights, served, report)
    leader = connect_followers(hosts) if hosts is not None and hosts.is_leader else None
    compiles = CompileCounter()
    compiles.start()
    return Executor(layout, programs, compiled, DeviceArrays(params, pool), compiles, leader)


def _mesh_shape(source: ModelSource, config: EngineConfig) -> Collectives:
    shape = config.shards or choose_mesh_shape(source.config.num_parameters * _BYTES_PER_WEIGHT[config.quantize])
    return Collectives(shape.data, shape.model)


def _choose_slots(source: ModelSource, config: EngineConfig, weights: OpenWeights, devices: Devices) -> int:
    slots = config.slots or affordable_slots(
        slot_bytes(source.config, devices.shards, weights.dtype.itemsize),
        weights.num_bytes,
        devices.platform,
        devices.shards,
    )
    return slots if config.hosts is None else min_over_hosts(slots)


def _allocate_pool(layout: DeviceLayout) -> StatePool:
    make = partial(new_pool, layout.model, layout.rows, layout.dtype, layout.platform, layout.shards)
    if layout.mesh is None:
        return make()
    shapes = jax.eval_shape(make)
    placed = shard_shapes(layout.mesh, pool_partition_specs(shapes), shapes)
    pool: StatePool = jax.jit(make, out_shardings=jax.tree.map(lambda x: x.sharding, placed))()
    return pool


def _load_and_compile(
    weights: OpenWeights, served: ServedPrograms, report: Progress
) -> tuple[Params, dict[str, CompiledProgram]]:
    """Loads weights and compiles programs at the same time; the first failure ends both."""
    executor = ThreadPoolExecutor(3, "load")
    try:
        params = executor.submit(weights.read, partial(report, "weights"))
        options = dict(served.layout.platform.compile_options)
        compiled = compile_all(lowerings(served.programs, served.model), options, executor, partial(report, "compile"))
        for done in as_completed([params, *compiled.values()]):
            done.result()
        return params.result(), {label: program.result() for label, program in compiled.items()}
    finally:
        executor.shutdown(cancel_futures=True)
        release_freed_memory()


def _step_limits(executor: Executor, config: EngineConfig) -> StepLimits:
    layout, programs = executor.layout, executor.programs
    shapes, shards = layout.step_shapes, layout.shards
    return StepLimits(
        prefill_chunk=config.prefill_chunk,
        prefill_beside_decode=layout.platform.prefill_beside_decode or config.prefill_chunk,
        prefill_rows=shapes.prefill_rows,
        prefill_layer_slices=len(shapes.layer_slices),
        decode_steps=_affordable_steps(executor) if shapes.decode_steps > 1 else 1,
        decode_rows=tuple(programs.decode),
        mask_words=words_of_mask(layout.model.vocab_size),
        slot_order=slot_order(layout.slots, layout.rows, shards.data, shards.model),
        shard_rows=layout.rows // shards.data,
    )


def _affordable_steps(executor: Executor) -> int:
    """Returns the number of tokens per dispatch within `_DISPATCH_SECONDS`, measured on the largest step."""
    active, times = np.ones(executor.layout.rows, np.bool), []
    for _ in range(3):
        start = time.perf_counter()
        executor.decode(active, 1).tokens.block_until_ready()
        times.append(time.perf_counter() - start)
    return max(1, min(int(_DISPATCH_SECONDS / min(times)), executor.layout.step_shapes.decode_steps))


def _reserved_slots(config: EngineConfig, slots: int) -> int:
    if config.reserved_slots is not None:
        return config.reserved_slots
    return 1 if config.tenants > 1 and slots > 1 else 0


def _prefix_cache(config: EngineConfig, runner: ModelRunner) -> PrefixCache | None:
    gib = config.state_cache_gib
    budget = int(_CACHE_SHARE * available_memory()) if gib is None else int(gib * 2**30)
    if not budget:
        return None
    disk = None
    if config.state_cache_dir is not None:
        kind = f"{numerics()}-inexact" if config.state_cache_inexact else numerics()
        model, limit = f"{runner.state_format.model}-{kind}", int(config.state_cache_dir_gib * 2**30)
        disk = DiskTier(config.state_cache_dir, model, runner.state_format.snapshot, limit, config.state_key)
    return PrefixCache(runner.window, budget, disk, is_inexact=config.state_cache_inexact)
