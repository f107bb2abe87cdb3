"""A model on its devices: the sole owner of the mesh, of parameters and of the state pool. Arrays in, arrays out.

Where the devices belong to several hosts, each has an executor. That of the leader runs what it is told, and tells the
others; theirs follow.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ..checkpoint import open_tensors
from ..checkpoint.sharded_placement import Placement
from ..checkpoint.source import ModelSource
from ..checkpoint.weights import Checkpoint, load_params, random_params
from ..core.config import EngineConfig
from ..core.errors import EngineDeadError
from ..core.host_memory import release_freed_memory
from ..distributed.hosts import Follow, Lead, agree, join
from ..model.collectives import REPLICATED, Collectives
from ..model.config import ModelConfig
from ..model.griffin import Params, abstract_model
from ..model.sharding_rules import bytes_per_device, shard_params, slot_bytes
from ..platform import Platform, affordable_slots, choose_mesh_shape, choose_platform, open_mesh
from .programs import (
    HELD,
    Compiled,
    ModelShapes,
    Program,
    all_programs,
    as_placed,
    compile_all,
    decode_rows,
    keep_programs,
    lower,
    new_pool,
    pool_spec,
    step_shapes,
)
from .steps import Graph

type Progress = Callable[[str, int, int], None]
"""Called with a stage ("weights", "compile"), how much of it is done, and how much there is; by several threads."""

_BYTES: Final = {None: 2, "int8": 1}
"""Of a weight, about."""


class Executor:
    """Runs the compiled programs one after the other. All of them are there when this returns.

    Args:
      source: the model.
      config: see `EngineConfig`.
      progress: see `Progress`.

    Attributes:
      dtype: of the activations.
      shards: what the model and its slots are cut into.
      slots: requests that run at a time.
      rows: of the pool; a few more than slots, where every shard has as many.
      decode_rows: the numbers of slots for which there is a decode program, in rising order.
      step_shapes: for which steps there are programs.
      platform: Platform of the devices.

    Raises:
      CheckpointError: the weights do not fit the model.
      ConfigError: the state of the slots does not fit into memory, or there are too few devices.
    """

    def __init__(self, source: ModelSource, config: EngineConfig, progress: Progress | None = None) -> None:
        report = progress or (lambda stage, done, total: None)
        self._hosts = config.hosts
        if config.hosts is not None:
            join(config.hosts)
        if config.compile_cache is not None:
            keep_programs(config.compile_cache)
        shape = config.shards or choose_mesh_shape(source.config.num_parameters * _BYTES[config.quantize])
        self.shards = Collectives(shape.data, shape.model)
        config = replace(config, shards=self.shards)
        self.platform = platform = choose_platform(self.shards)
        self._mesh = open_mesh(self.shards)
        self.step_shapes = step_shapes(source.config, config.prefill_chunk, platform)
        with _open_weights(source, config, self.shards, platform, self._mesh) as weights:
            self.dtype = weights.dtype
            self.slots = config.slots or self._affordable_slots(source.config, weights)
            if config.hosts is not None:
                self.slots = agree(self.slots)
            # A step of one row takes another path, slow and with other bits.
            self.rows = -(-max(self.slots, 2) // self.shards.count) * self.shards.count
            pool = self._new_pool(source.config)
            abstract, specs = weights.abstract, weights.specs
            shapes = ModelShapes(
                source.config, weights.graph, abstract, pool, self.dtype, self.shards, specs, self._mesh
            )
            reads_slots = config.state_cache_inexact
            programs = all_programs(shapes, self.step_shapes, reads_slots=reads_slots)
            params, self._compiled = _load_and_compile(weights, programs, shapes, platform, report)
        self._programs: Mapping[str, Program] = programs
        self._held: dict[str, Any] = {"params": params, "pool": pool}
        self.decode_rows = decode_rows(pool)
        self._lead = Lead(config.hosts) if config.hosts is not None and config.hosts.is_leader else None
        self._compiles = 0
        jax.monitoring.register_event_duration_secs_listener(self._count_compile)

    def close(self) -> None:
        """Stops counting compilations, and lets followers end; the devices' memory goes with the last reference."""
        jax.monitoring.unregister_event_duration_listener(self._count_compile)
        if self._lead is not None:
            self._lead.close()

    @property
    def compiles_since_ready(self) -> int:
        """XLA compilations since every shape was compiled."""
        return self._compiles

    @property
    def failure(self) -> EngineDeadError | None:
        """Why nothing can go on, if that shows beside the steps: a host has been lost."""
        return None if self._lead is None else self._lead.failure

    def run(self, name: str, *inputs: Any) -> Mapping[str, Any]:
        """Hands a program to the devices and returns at once.

        Args:
          name: of the program.
          inputs: from the host, as the program has them.

        Returns:
          Its results by name, but for the parameters and the pool; arrays that are not ready yet.

        Raises:
          EngineDeadError: a host has been lost.
        """
        if self._lead is not None:
            self._lead.send(name, [np.asarray(x) for x in jax.tree.leaves(inputs)])
        return self._call(name, inputs)

    def follow(self, on_loss: Callable[[], None]) -> None:
        """Runs what the leader runs, until that ends.

        Args:
          on_loss: see `Follow`.

        Raises:
          EngineDeadError: the leader is gone.
        """
        assert self._hosts is not None
        for name, arrays in Follow(self._hosts, on_loss).calls():
            self._call(name, jax.tree.unflatten(jax.tree.structure(self._programs[name].inputs), arrays))

    def _call(self, name: str, inputs: tuple[Any, ...]) -> Mapping[str, Any]:
        program = self._programs[name]
        held = (self._held[each] for each in program.held)
        results = dict(zip(program.results, self._compiled[name](*held, *self._place(inputs)), strict=True))
        self._held |= {each: results[each] for each in HELD if each in results}
        results.pop("pool", None)  # which the next step donates
        return results

    def _place(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._mesh is None:
            placed: tuple[Any, ...] = jax.device_put(inputs)
            return placed
        everywhere = NamedSharding(self._mesh, REPLICATED)
        on_all: tuple[Any, ...] = jax.tree.map(partial(_on_all, everywhere), inputs)
        return on_all

    def _new_pool(self, model: ModelConfig) -> Any:
        make = partial(new_pool, model, self.rows, self.dtype, self.platform, self.shards)
        if self._mesh is None:
            return make()
        shapes = jax.eval_shape(make)
        placed = as_placed(self._mesh, pool_spec(shapes), shapes)
        return jax.jit(make, out_shardings=jax.tree.map(lambda x: x.sharding, placed))()

    def _affordable_slots(self, model: ModelConfig, weights: "_Weights") -> int:
        num_bytes = slot_bytes(model, self.shards, self.dtype.itemsize)
        return affordable_slots(num_bytes, weights.num_bytes, self.platform, self.shards)

    def _count_compile(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self._compiles += 1


def _on_all(everywhere: NamedSharding, x: Any) -> jax.Array:
    """An array that every process has, on all devices; nothing is compared, as `device_put` would."""
    array = np.asarray(x)
    return jax.make_array_from_callback(array.shape, everywhere, lambda index: array[index])


class _Weights(NamedTuple):
    """A model whose weights are still where they lie.

    Attributes:
      dtype: of the activations.
      graph, abstract: the model, and its parameters' shapes, of all shards side by side.
      specs: how they lie on the mesh.
      read: reads or draws the parameters and places them on the devices.
      num_bytes: that they will take on each device.
    """

    dtype: np.dtype[Any]
    graph: Graph
    abstract: Params
    specs: Params
    read: Callable[[Callable[[int, int], None]], Params]
    num_bytes: int


@contextmanager
def _open_weights(
    source: ModelSource, config: EngineConfig, shards: Collectives, platform: Platform, mesh: Mesh | None
) -> Iterator[_Weights]:
    """Checks what can be checked without reading them."""
    placement = None if mesh is None else Placement(mesh, source.config, shards)
    if source.is_random:
        dtype, graph, whole = _abstract(source.config, config, shards, source.config.dtype, platform)
        read: Callable[..., Params] = partial(random_params, whole, config.seed, placement=placement)
        yield _weights(source.config, shards, dtype, graph, whole, read)
        return
    with open_tensors(source.weights, source.config) as tensors:
        checkpoint = Checkpoint(source.config, tensors)
        config = replace(config, quantize=source.config.quantize or config.quantize)
        dtype, graph, whole = _abstract(source.config, config, shards, checkpoint.dtype, platform)
        read = partial(load_params, checkpoint, whole, placement=placement)
        yield _weights(source.config, shards, dtype, graph, whole, read)


def _weights(
    model: ModelConfig,
    shards: Collectives,
    dtype: np.dtype[Any],
    graph: Graph,
    whole: Params,
    read: Callable[..., Params],
) -> _Weights:
    abstract, specs = shard_params(whole, model, shards)
    num_bytes = bytes_per_device(abstract, specs, shards)
    return _Weights(dtype, graph, abstract, specs, lambda report: read(progress=report), num_bytes)


def _abstract(
    model: ModelConfig, config: EngineConfig, shards: Collectives, stored: str, platform: Platform
) -> tuple[np.dtype[Any], Graph, Params]:
    dtype = jnp.dtype(stored if config.dtype == "auto" else config.dtype)
    matrix_dtype = None if config.quantize is None else jnp.dtype(config.quantize)
    return dtype, *abstract_model(model, dtype, platform, matrix_dtype, shards)


def _load_and_compile(
    weights: _Weights, programs: Mapping[str, Program], shapes: ModelShapes, platform: Platform, report: Progress
) -> tuple[Params, Compiled]:
    """Side by side; the first that fails ends both."""
    executor = ThreadPoolExecutor(3, "load")
    try:
        params = executor.submit(weights.read, partial(report, "weights"))
        options = dict(platform.compile_options)
        lowerings = {name: partial(lower, program, shapes) for name, program in programs.items()}
        compiled = compile_all(lowerings, options, executor, partial(report, "compile"))
        for done in as_completed([params, *compiled.values()]):
            done.result()
        return params.result(), {name: program.result() for name, program in compiled.items()}
    finally:
        executor.shutdown(cancel_futures=True)
        release_freed_memory()
