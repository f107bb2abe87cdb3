"""The leaves of the arrays that stay on the devices, of which each program takes and replaces some."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Literal

import jax

from ..model.griffin import Params
from .steps import StatePool

type ArrayName = Literal["params", "pool", "hidden", "last"]


@partial(jax.tree_util.register_dataclass, data_fields=("arrays",), meta_fields=("indices",))
@dataclass(frozen=True, slots=True)
class Leaves:
    """Some of the leaves of `executor.DeviceArrays`, as an argument or a result of a compiled program.

    Attributes:
      arrays: The leaves.
      indices: Index of each among all leaves, which is part of the program.
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
    leaf = jax.tree.structure(0)
    return {"params": jax.tree.structure(params), "pool": jax.tree.structure(pool), "hidden": leaf, "last": leaf}


def taken_leaves(program: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the indices of the leaves that a lowered or compiled program reads only, and of those that it replaces.

    Args:
      program: Program of `lowering.lower`.
    """
    (kept, donated, *_), _ = jax.tree.unflatten(program.in_tree, [None] * program.in_tree.num_leaves)
    return kept.indices, donated.indices
