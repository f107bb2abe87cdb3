"""Builds engines: joins hosts, loads weights, allocates the state pool and compiles every program; slow."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np

from .capacity.roofline import estimated_slots, fit_slots, memory_of_served
from .checkpoint.source import ModelSource, model_identity
from .devices.hosts import Leader, calls_of_leader, connect_followers, join, min_over_hosts
from .devices.platform import (
    Platform,
    affordable_slots,
    choose_mesh_shape,
    choose_platform,
    configure_jax,
    device_memory,
    numerics,
    open_mesh,
    without_kernels,
)
from .engine_core import EngineCore
from .model.config import ModelConfig, Params
from .model.sharding import Collectives
from .model.state import state_bytes
from .prefix_cache.cache import PrefixCache
from .prefix_cache.disk import DiskTier, make_folder
from .scheduling.scheduler import Scheduler
from .simulation import SimulatedRunner, simulated_runner
from .types.config import CPU_ONLY, NO_DRAFTS, SIMULATED, EngineConfig, Speculation, history_bytes
from .types.errors import CheckpointError, ConfigError
from .types.host_memory import available_memory, release_freed_memory, shown_bytes
from .types.snapshot import RequestSnapshotFormat, SavedStateFormat
from .worker.compilation import CompiledPrograms, KernelRefusedError, compile_served
from .worker.earlier_starts import open_trace_cache, read_slots, slots_key, write_slots
from .worker.executor import DeviceArrays, Executor
from .worker.lowering import pool_partition_specs, shard_shapes
from .worker.runner import ModelRunner
from .worker.served import Devices, OpenWeights, Served, open_weights
from .worker.steps import StatePool

_logger = logging.getLogger(__name__)

type Progress = Callable[[str, int, int], None]
"""Called with a stage ("weights", "compile"), the number of finished steps, and of all steps; by several threads."""

_DISPATCH_SECONDS: Final = 0.02
"""Maximum duration of a decode dispatch of several tokens."""

_CACHE_SHARE: Final = 1 / 8
"""Default share of free host memory given to the prefix cache."""


def _no_progress(stage: str, done: int, total: int) -> None:
    pass


def load_engine(source: ModelSource, config: EngineConfig, progress: Progress = _no_progress) -> EngineCore:
    """Returns an engine that is ready to serve.

    Args:
      progress: Called while weights are loaded and programs are compiled.

    Raises:
      CheckpointError: The weights do not fit the model.
      ConfigError: The slots do not fit into memory, there are too few devices, or a host is missing.
    """
    if config.simulate is not None:
        return _engine(config, simulated_runner(source, config, config.simulate), SIMULATED)
    if config.state_cache_dir is not None:
        make_folder(config.state_cache_dir)
    runner = load_runner(source, config, progress)
    return _engine(config, runner, numerics(), runner.executor.leader)


def _engine(
    config: EngineConfig, runner: ModelRunner | SimulatedRunner, bits: str, leader: Leader | None = None
) -> EngineCore:
    """Returns an engine around a runner.

    Args:
      runner: Runs batches.
      bits: Identifies everything that affects the last bits of states; see `numerics`.
      leader: Connections to other hosts, if there are any.
    """
    reserved_slots = config.reserved_slots
    if reserved_slots is None:
        reserved_slots = 1 if config.tenants > 1 and runner.served.slots > 1 else 0
    scheduler = Scheduler(
        runner.served.slots,
        config.max_queue,
        runner.limits,
        config.max_queue_tokens,
        config.tenants,
        reserved_slots=reserved_slots,
        cache=_prefix_cache(config, runner, bits),
    )
    platform, shards, *_ = runner.served.devices  # an engine of the same identity has states with the same bits
    identity = f"{runner.state_format.model}-{bits}-data={shards.data},model={shards.model}-{platform.name}"
    request_snapshot_format = (
        RequestSnapshotFormat(identity, runner.state_format.snapshot) if config.request_snapshots else None
    )
    state_format = replace(
        runner.state_format, engine=f"{identity}-inexact" if config.state_cache_inexact else identity
    )
    return EngineCore(scheduler, runner, state_format, leader, request_snapshot_format)


def load_runner(source: ModelSource, config: EngineConfig, progress: Progress = _no_progress) -> ModelRunner:
    """Returns a runner that is ready to serve; see `load_engine`."""
    source = source.with_kv_dtype(config.kv_dtype)
    executor = _load_executor(source, config, progress)
    return ModelRunner(executor, _state_format(source, executor.served), _affordable_steps(executor))


def _state_format(source: ModelSource, served: Served) -> SavedStateFormat:
    settings = served.settings
    return served.state_format(model_identity(source, served.dtype.name, settings.quantize, settings.seed))


def follow(
    source: ModelSource, config: EngineConfig, on_loss: Callable[[], None], progress: Progress = _no_progress
) -> None:
    """Runs this process as a follower of several hosts, until the leader shuts down.

    Args:
      source: The same model as the leader's.
      config: The same settings of the engine as the leader's.
      on_loss: Called by another thread if the leader is lost.
      progress: Called while weights are loaded and programs are compiled.

    Raises:
      CheckpointError: The weights do not fit the model.
      ConfigError: The slots do not fit into memory, or a host is missing.
      EngineDeadError: The leader has been lost.
    """
    assert config.hosts is not None
    executor = _load_executor(source.with_kv_dtype(config.kv_dtype), config, progress)
    executor.follow(calls_of_leader(config.hosts, on_loss))


def _load_executor(source: ModelSource, config: EngineConfig, report: Progress) -> Executor:
    hosts = config.hosts
    configure_jax(config.compile_cache, has_hosts=hosts is not None)
    if hosts is not None:
        join(hosts)
    shards = _mesh_shape(source, config)
    platform = choose_platform(shards, config.without_kernels)
    if config.speculation is not None:
        _check_speculation(config.speculation, source.config, platform)
    mesh = open_mesh(shards)
    _check_quantization(source, config, platform)
    devices = Devices(platform, shards, mesh)
    params, compiled = _with_kernels_or_xla(devices, partial(_load_and_compile, source, config, report))
    arrays = DeviceArrays(params, _allocate_pool(compiled.served))
    leader = connect_followers(hosts) if hosts is not None and hosts.is_leader else None
    return Executor(compiled, arrays, leader)


def _check_speculation(speculation: Speculation, model: ModelConfig, platform: Platform) -> None:
    """Checks that tokens can be drafted.

    Raises:
      ConfigError: They cannot on this platform, or a round would be longer than the window.
    """
    if not platform.sizes.draft_rows:
        raise ConfigError(NO_DRAFTS)
    if speculation.num_tokens >= model.window:
        raise ConfigError(
            f"num_speculative_tokens must be below the attention window of {model.window}, got {speculation.num_tokens}"
        )


def _check_quantization(source: ModelSource, config: EngineConfig, platform: Platform) -> None:
    """Checks that the devices and the checkpoint go with the format of the matrices.

    Raises:
      ConfigError: The format is for CPUs and the devices are others, or the checkpoint is stored in another format.
    """
    stored, wanted = source.config.quantize, config.quantize
    if (stored or wanted) in CPU_ONLY and not platform.uses_host_memory:
        raise ConfigError(
            f"quantize {stored or wanted} is for CPUs alone, and the device is a {platform.name}; use int8"
        )
    if stored is not None and wanted not in (None, stored):
        raise CheckpointError(f"{source.name}: is stored in {stored}; take the original weights for quantize {wanted}")


def _mesh_shape(source: ModelSource, config: EngineConfig) -> Collectives:
    bytes_per_weight = jnp.dtype(config.quantize or "bfloat16").itemsize  # approximately: scales are few
    shape = config.shards or choose_mesh_shape(source.config.num_parameters * bytes_per_weight)
    return Collectives(shape.data, shape.model)


def _allocate_pool(served: Served) -> StatePool:
    if served.devices.mesh is None:
        return served.new_pool()
    placed = shard_shapes(served.devices.mesh, pool_partition_specs(served.pool), served.pool)
    return jax.jit(served.new_pool, out_shardings=jax.tree.map(lambda x: x.sharding, placed))()


def _with_kernels_or_xla[Result](devices: Devices, load: Callable[[Devices], Result]) -> Result:
    """Loads with the platform's kernels, and with XLA instead of kernels that the compiler refuses."""
    try:
        return load(devices)
    except KernelRefusedError as error:
        fewer = without_kernels(devices.platform, error.reasons)
        if fewer == devices.platform:
            raise
        _logger.warning("%s; XLA computes in their place", error)
        return _with_kernels_or_xla(devices._replace(platform=fewer), load)


def _load_and_compile(
    source: ModelSource, config: EngineConfig, report: Progress, devices: Devices
) -> tuple[Params, CompiledPrograms]:
    """Loads weights and compiles programs at the same time; the first failure ends both."""
    with open_weights(source, config, devices) as weights:
        limit = None if devices.platform.uses_host_memory else device_memory()
        executor = ThreadPoolExecutor(3, "load")
        try:
            params: Future[Params] = executor.submit(weights.read, partial(report, "weights"))

            def check_weights() -> None:
                if params.done():
                    params.result()

            def compile_for(slots: int) -> CompiledPrograms:
                served = weights.served.with_slots(slots)
                traces = open_trace_cache(config.compile_cache, served)
                return compile_served(served, executor, partial(report, "compile"), check_weights, traces)

            compiled = _compile_to_fit(weights, limit, compile_for)
            return params.result(), compiled
        finally:
            executor.shutdown(cancel_futures=True)
            release_freed_memory()


def _compile_to_fit(
    weights: OpenWeights, limit_bytes: int | None, compile_for: Callable[[int], CompiledPrograms]
) -> CompiledPrograms:
    """Compiles programs for a number of slots that fits the devices' memory; hosts agree on it.

    Raises:
      ConfigError: The programs for the number of slots that the config requests need more memory than a device has.
    """
    served, config, devices = weights.served, weights.served.settings, weights.served.devices
    agree = min_over_hosts if config.hosts is not None else int
    if limit_bytes is None:
        state = state_bytes(served.config, served.dtype.itemsize, devices.shards.model)
        each = state + history_bytes(config.speculation)
        return compile_for(agree(config.slots or affordable_slots(each, weights.num_bytes, devices.platform)))
    if config.slots is not None:
        compiled = compile_for(agree(config.slots))
        if excess := compiled.excess_bytes(limit_bytes):
            raise ConfigError(
                f"slots={compiled.served.slots} needs {shown_bytes(limit_bytes + excess)} on each device, which has "
                f"{shown_bytes(limit_bytes)}; set fewer, or auto"
            )
        return compiled
    memory = memory_of_served(weights, limit_bytes)
    key = slots_key(numerics(), served, limit_bytes)
    first = read_slots(config.compile_cache, key) or estimated_slots(memory, devices.shards)
    compiled = fit_slots(first, compile_for, memory, devices.shards, agree)
    if (slots := compiled.served.slots) != first:
        _logger.warning("programs for %d slots need more memory than a device has; serving %d", first, slots)
    write_slots(config.compile_cache, key, slots)
    return compiled


def _affordable_steps(executor: Executor) -> int:
    """Returns the number of tokens per dispatch within `_DISPATCH_SECONDS`, measured on the largest step."""
    rows, most = executor.served.rows, executor.served.devices.platform.decode_steps
    if most == 1:
        return 1
    times = []
    for _ in range(3):
        start = time.perf_counter()
        executor.run(executor.programs.decode[rows], np.ones(rows, np.bool), np.int32(1)).tokens.block_until_ready()
        times.append(time.perf_counter() - start)
    return max(1, min(int(_DISPATCH_SECONDS / min(times)), most))


def _prefix_cache(config: EngineConfig, runner: ModelRunner | SimulatedRunner, bits: str) -> PrefixCache | None:
    gib = config.state_cache_gib
    budget = int(_CACHE_SHARE * available_memory()) if gib is None else int(gib * 2**30)
    if not budget:
        return None
    disk = None
    if config.state_cache_dir is not None:
        kind = f"{bits}-inexact" if config.state_cache_inexact else bits
        model, limit = f"{runner.state_format.model}-{kind}", int(config.state_cache_dir_gib * 2**30)
        disk = DiskTier(config.state_cache_dir, model, runner.state_format.snapshot, limit, config.state_key)
    return PrefixCache(runner.served.config.window, budget, disk, is_inexact=config.state_cache_inexact)
