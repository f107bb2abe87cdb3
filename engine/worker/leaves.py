"""The leaves of the arrays that stay on the devices, of which each program takes and replaces some."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import jax

from ..model.griffin import Params
from .steps import StatePool

type ArrayName = Literal["params", "pool", "hidden"]


@partial(jax.tree_util.register_dataclass, data_fields=("arrays",), meta_fields=("indices",))
@dataclass(frozen=True, slots=True)
class Leaves:
    """Leaves of `executor.DeviceArrays`, as an argument or a result of a compiled program.

    Attributes:
      indices: Index of each among all leaves when the program was traced; `Program.moves` says which are passed.
    """

    arrays: tuple[Any, ...]
    indices: tuple[int, ...]


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

    def moved(self, moves: Mapping[int, int]) -> "UsedLeaves":
        """Returns the leaves after `moves`, a mapping of indices from `leaf_moves`."""
        return UsedLeaves(*(tuple(moves.get(index, index) for index in indices) for indices in self))


def used_leaves(program: Any) -> UsedLeaves:
    """Returns the leaves that a lowered or compiled program of `lowering.lower` uses."""
    (kept, donated, *_), _ = jax.tree.unflatten(program.in_tree, [None] * program.in_tree.num_leaves)
    written, _ = jax.tree.unflatten(program.out_tree, [None] * program.out_tree.num_leaves)
    return UsedLeaves(kept.indices, donated.indices, written.indices)


def leaf_moves(params: Params, pool: StatePool, source: range, target: range) -> dict[int, int]:
    """Returns, by the index of each leaf of some layers, that of the same leaf of other layers.

    Args:
      params: Parameters of the model, or their shapes.
      pool: State pool, or its shapes.
      source: The layers.
      target: As many other layers, of the same kinds.
    """
    slices, structures = leaf_slices(params, pool), leaf_structures(params, pool)
    indices = range(slices["hidden"].stop)
    all_params, all_pool = (jax.tree.unflatten(structures[name], indices[slices[name]]) for name in ("params", "pool"))

    def leaves(layers: range) -> list[int]:
        return jax.tree.leaves(([all_params["blocks"][layer] for layer in layers], all_pool.states.layers(layers)))

    return dict(zip(leaves(source), leaves(target), strict=True))
