"""The arrays that stay on the devices, as one list of leaves of which each program takes and replaces some."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Literal

import jax
from jaxtyping import Array

from ..model.griffin import Params
from .steps import StatePool

type ArrayName = Literal["params", "pool", "hidden", "last"]


@partial(jax.tree_util.register_dataclass, data_fields=("arrays",), meta_fields=("indices",))
@dataclass(frozen=True, slots=True)
class Leaves:
    """Some of the leaves of `DeviceArrays`, as an argument or a result of a compiled program.

    Attributes:
      arrays: The leaves.
      indices: Index of each among all leaves, which is part of the program.
    """

    arrays: tuple[Any, ...]
    indices: tuple[int, ...]


class DeviceArrays:
    """Arrays that stay on the devices from one program to the next.

    Beside parameters and state pool these are `hidden`, the activations of all tokens of the last prefill step, and
    `last`, those of each row's last token of the last prefill step, or of restored prompts.

    Args:
      params: Parameters of the model.
      pool: State pool.
    """

    def __init__(self, params: Params, pool: StatePool) -> None:
        self._structures = leaf_structures(params, pool)
        self._slices = leaf_slices(params, pool)
        self._leaves: list[Array | None] = [*jax.tree.leaves((params, pool)), None, None]

    def take(self, indices: tuple[int, ...]) -> Leaves:
        """Returns the leaves with these indices."""
        leaves = self._leaves
        return Leaves(tuple([leaves[index] for index in indices]), indices)

    def replace(self, written: Leaves) -> None:
        """Replaces leaves by those that a program returned."""
        leaves = self._leaves
        for index, array in zip(written.indices, written.arrays, strict=True):
            leaves[index] = array

    @property
    def params(self) -> Params:
        """Parameters of the model."""
        return self._tree("params")

    @params.setter
    def params(self, params: Params) -> None:
        self._set_tree("params", params)

    @property
    def pool(self) -> StatePool:
        """State pool; a program that replaces a leaf of it takes the old one's memory."""
        pool: StatePool = self._tree("pool")
        return pool

    @pool.setter
    def pool(self, pool: StatePool) -> None:
        self._set_tree("pool", pool)

    @property
    def last(self) -> Array:
        """Activations of each row's last token."""
        last: Array = self._tree("last")
        return last

    def _tree(self, name: ArrayName) -> Any:
        return jax.tree.unflatten(self._structures[name], self._leaves[self._slices[name]])

    def _set_tree(self, name: ArrayName, tree: Any) -> None:
        self._leaves[self._slices[name]] = self._structures[name].flatten_up_to(tree)


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
