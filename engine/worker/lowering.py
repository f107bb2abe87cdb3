"""Lowering of device programs to functions of just the leaves that they use.

A program's step takes and returns whole arrays, such as the state pool. A call of a compiled program costs the host
time for every leaf, during which a CPU's compute threads are idle. So a program is first traced, which shows the
leaves that it reads, and the leaves that it returns unchanged. The compiled function takes and returns only the others.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from ..model.config import Params
from ..model.sharding import REPLICATED, SLOTS, state_partition_specs
from .earlier_starts import Step, TraceCache, TracedStep, is_written, on_leaves
from .served import ArrayName, Program, Served
from .steps import StatePool


@partial(jax.tree_util.register_dataclass, data_fields=("arrays",), meta_fields=("indices",))
@dataclass(frozen=True, slots=True)
class Leaves:
    """Leaves of `executor.DeviceArrays`, as an argument or a result of a compiled program.

    Attributes:
      indices: Index of each among all leaves when the program was traced; see `passed_leaves`.
    """

    arrays: tuple[Any, ...]
    indices: tuple[int, ...]


class UsedLeaves(NamedTuple):
    """Indices of the leaves that a program uses.

    Attributes:
      kept: Leaves that it only reads.
      donated: Leaves that it reads and replaces.
      written: Leaves that it returns: the donated leaves, and leaves that it does not read.
    """

    kept: tuple[int, ...]
    donated: tuple[int, ...]
    written: tuple[int, ...]


def lower(program: Program[Any], served: Served, traces: TraceCache | None = None) -> Any:
    """Traces a program, ready to be compiled.

    The compiled function takes two `Leaves` of `DeviceArrays` and then the program's inputs: leaves that it only reads,
    and donated leaves, which it reads and replaces. It returns the replaced `Leaves`, and the result or None.

    Args:
      program: Program to trace.
      traces: Traced programs of earlier starts, if they are kept; only on a single device.
    """
    leaves, inputs = _device_leaves(program, served), _placed(served, program.inputs, REPLICATED)
    step = _step_on_leaves(program, served)
    if traces is None:
        traced = _trace(step, (leaves, *inputs))
    else:
        traced = traces.traced(program.label, step, (leaves, *inputs))
    return _lower_used(traced, leaves, inputs)


def _trace(step: Step, arguments: tuple[Any, ...]) -> TracedStep:
    jitted = jax.jit(step)
    traced = jitted.trace(*arguments)
    jaxpr, tree = traced.jaxpr.jaxpr, jax.tree.structure(arguments)
    _, is_read = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    call = on_leaves(jitted, tree)  # which JAX does not trace again
    used = frozenset(place for place, read in enumerate(is_read) if read)
    return TracedStep(call, used, is_written(jax.tree.structure(traced.out_info)))


def _lower_used(traced: TracedStep, leaves: list[Any], inputs: tuple[Any, ...]) -> Any:
    """Lowers a traced step as a function of the leaves that it uses."""
    present = [index for index, leaf in enumerate(leaves) if leaf is not None]
    read = [index for place, index in enumerate(present) if place in traced.used]
    written = tuple(index for index, written in enumerate(traced.is_written) if written)
    kept = tuple(index for index in read if index not in written)
    donated = tuple(index for index in read if index in written)
    flat = jax.tree.leaves((leaves, inputs))

    def run(kept: Leaves, donated: Leaves, *inputs: Any) -> tuple[Leaves, Any]:
        zeros = cache(jnp.zeros)  # hundreds in the place of unused leaves, of few shapes; `jit` drops them
        taken = dict(zip((*kept.indices, *donated.indices), (*kept.arrays, *donated.arrays), strict=True))
        given = (*map(taken.get, present), *jax.tree.leaves(inputs))
        arguments = (
            x if place in traced.used else zeros(shape.shape, shape.dtype)
            for place, (x, shape) in enumerate(zip(given, flat, strict=True))
        )
        replaced, result = traced.step(*arguments)
        return Leaves(tuple(replaced[index] for index in written), written), result

    shapes = (Leaves(tuple(leaves[index] for index in indices), indices) for indices in (kept, donated))
    return jax.jit(run, donate_argnums=1).lower(*shapes, *inputs)


def _step_on_leaves(program: Program[Any], served: Served) -> Step:
    """Returns the program's step as a function of the leaves of `DeviceArrays` and the inputs.

    Leaves that the program does not read may be None. The step returns a list of all leaves, with None for unchanged
    leaves, and the result or None.
    """
    slices, structures = leaf_slices(served.params, served.pool), leaf_structures(served.params, served.pool)

    def step(leaves: list[Any], *inputs: Any) -> tuple[list[Any], Any]:
        arrays = (jax.tree.unflatten(structures[name], leaves[slices[name]]) for name in program.reads)
        outputs = program.step(*arrays, *inputs)
        if len(program.replaces) + program.has_result == 1:
            outputs = (outputs,)
        new = list(leaves)
        for name, array in zip(program.replaces, outputs, strict=False):
            new[slices[name]] = jax.tree.leaves(array)
        changed = [after if after is not before else None for before, after in zip(leaves, new, strict=True)]
        return changed, outputs[-1] if program.has_result else None

    if (mesh := served.devices.mesh) is None:
        return step
    specs = [*(leaf.sharding.spec for leaf in _resident_leaves(served)), _spec("hidden", served)]
    takes, gives = (specs, *(REPLICATED for _ in program.inputs)), (specs, REPLICATED)
    return jax.shard_map(step, mesh=mesh, in_specs=takes, out_specs=gives, check_vma=False)


def _device_leaves(program: Program[Any], served: Served) -> list[Any]:
    """Returns the shapes of the leaves of `DeviceArrays`, with None for arrays that the program does not read."""
    slices = leaf_slices(served.params, served.pool)
    leaves: list[Any] = [None] * slices["hidden"].stop
    for name in program.reads:
        arrays = {"params": served.params, "pool": served.pool, "hidden": served.hidden}
        leaves[slices[name]] = jax.tree.leaves(_placed(served, arrays[name], _spec(name, served)))
    return leaves


def _resident_leaves(served: Served) -> list[jax.ShapeDtypeStruct]:
    """Returns the shapes of the leaves of the parameters and the state pool."""
    specs = _spec("params", served), _spec("pool", served)
    return jax.tree.leaves(_placed(served, (served.params, served.pool), specs))


def idle_bytes(lowered: Any, served: Served) -> int:
    """Returns the bytes of parameters and state pool on each device that a program of `lower` does not take."""
    used = used_leaves(lowered)
    taken = {*used.kept, *used.donated}
    return sum(_device_bytes(leaf) for index, leaf in enumerate(_resident_leaves(served)) if index not in taken)


def _device_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    shape: tuple[int, ...] = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    itemsize: int = leaf.dtype.itemsize
    return math.prod(shape) * itemsize


def _placed[Tree](served: Served, tree: Tree, spec: Any) -> Tree:
    """Returns shapes of arrays on the model's devices; see `shard_shapes`."""
    devices = served.devices
    if devices.mesh is not None:
        return shard_shapes(devices.mesh, spec, tree)
    if devices.device is None:
        return tree
    place = SingleDeviceSharding(devices.device)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def shard_shapes(mesh: Mesh, spec: Any, tree: Any) -> Any:
    """Returns shapes of arrays that are sharded over a mesh.

    Args:
      mesh: Devices.
      spec: Partition specs, as a prefix of the tree.
      tree: Arrays or their shapes.
    """
    return jax.tree.map(
        lambda spec, part: jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)), part
        ),
        spec,
        tree,
        is_leaf=lambda node: isinstance(node, PartitionSpec),
    )


def pool_partition_specs(pool: StatePool) -> StatePool:
    """Returns the partition specs of the state pool."""
    return StatePool(pool.states.map(state_partition_specs), SLOTS, SLOTS)  # type: ignore[arg-type]


def _spec(name: ArrayName, served: Served) -> Any:
    return {"params": served.specs, "pool": pool_partition_specs(served.pool), "hidden": SLOTS}[name]


def leaf_slices(params: Params, pool: StatePool) -> Mapping[ArrayName, slice]:
    """Returns the place of each array among all leaves.

    Args:
      params: Parameters of the model, or their shapes.
      pool: State pool, or its shapes.
    """
    structures = leaf_structures(params, pool)
    ends = tuple(accumulate(structure.num_leaves for structure in structures.values()))
    return dict(zip(structures, map(slice, (0, *ends), ends), strict=False))


def leaf_structures(params: Params, pool: StatePool) -> Mapping[ArrayName, Any]:
    """Returns the tree structure of each array, in the order of their leaves; see `leaf_slices`."""
    return {"params": jax.tree.structure(params), "pool": jax.tree.structure(pool), "hidden": jax.tree.structure(0)}


def used_leaves(program: Any) -> UsedLeaves:
    """Returns the leaves that a lowered or compiled program of `lowering.lower` uses."""
    (kept, donated, *_), _ = jax.tree.unflatten(program.in_tree, [None] * program.in_tree.num_leaves)
    written, _ = jax.tree.unflatten(program.out_tree, [None] * program.out_tree.num_leaves)
    return UsedLeaves(kept.indices, donated.indices, written.indices)


def passed_leaves(compiled: Any, program: Program[Any], served: Served) -> UsedLeaves:
    """Returns the leaves that a program takes and replaces, its own layers' if another runs in its place.

    Args:
      compiled: The program, or the one that it is equal to, lowered or compiled.
    """
    used = used_leaves(compiled)
    if program.equal is None:
        return used
    assert program.layers is not None
    slices, structures = leaf_slices(served.params, served.pool), leaf_structures(served.params, served.pool)
    indices = range(slices["hidden"].stop)
    params, pool = (jax.tree.unflatten(structures[name], indices[slices[name]]) for name in ("params", "pool"))

    def leaves(layers: range) -> list[int]:
        return jax.tree.leaves(([params["blocks"][layer] for layer in layers], pool.states.layers(layers)))

    assert program.equal.layers is not None
    moves = dict(zip(leaves(program.equal.layers), leaves(program.layers), strict=True))
    return UsedLeaves(*(tuple(moves.get(index, index) for index in indices) for indices in used))
