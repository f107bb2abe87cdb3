"""States of all slots, behind one interface with two memory layouts.

`ContiguousStates` is one array per part of the state, which may be sharded over a mesh; kernels read only the first
slots of it. `BlockedStates` splits slots into groups and windows into blocks, so that a step on a CPU, through XLA,
reads only the first slots and the filled part of windows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from ...kernels.window_attention import block_sizes
from .config import ModelConfig
from .layer_kinds import LAYER_KINDS, AttentionState, LayerState, num_rows, slot_axes
from .sharding import Collectives
from .state import ModelState, RowArrays, StackedArray, StateLayout, arrays_of_row, state_of_row, zero_state


class SlotStates(ABC):
    """States of all slots; an immutable pytree, whose donated arrays are updated in place.

    Slots are numbered over the whole pool. A slot past its end reads as zeros and is never written.
    """

    @abstractmethod
    def map(self, function: Callable[[ModelState], ModelState]) -> "SlotStates":
        """Applies a function to each group of slots."""

    @abstractmethod
    def with_layers(self, layers: range, new: "SlotStates") -> "SlotStates":
        """Replaces consecutive layers by the layers of `new`."""

    @property
    @abstractmethod
    def decode_rows(self) -> tuple[int, ...]:
        """Numbers of slots that `first` accepts, of the whole mesh, in rising order."""

    @abstractmethod
    def first(self, rows: int) -> ModelState:
        """Returns the states of the first slots of each device for a decode step, without a copy.

        The arrays may have more rows than the step, for the slots behind the first ones. A layer leaves these rows as
        they are. `Collectives.first_rows` says where the step's rows are.
        """

    @abstractmethod
    def with_first(self, rows: int, state: ModelState) -> "SlotStates":
        """Replaces the states of the first slots by the result of a decode step on `first`."""

    @abstractmethod
    def gather(self, slots: Int32[Array, " R"], fresh: Bool[Array, " R"], *, over_data: bool = False) -> ModelState:
        """Returns copies of some slots' states, with windows in one block and replicated over `model`.

        Args:
          fresh: Rows that are zeros instead of copies.
          over_data: Whether slots of any data shard are gathered, not only of this one.
        """

    @abstractmethod
    def scatter(self, slots: Int32[Array, " R"], state: ModelState) -> "SlotStates":
        """Writes rows of a state as `gather` returns it into the slots that this device holds, one slice each."""

    @abstractmethod
    def read(self, layout: StateLayout, slots: Int32[Array, " 1"]) -> RowArrays:
        """Returns the whole state of one slot on every device.

        Args:
          layout: Layout of the model's state.
        """

    @abstractmethod
    def restore(self, layout: StateLayout, slots: Int32[Array, " 1"], arrays: RowArrays) -> "SlotStates":
        """Writes a state as `read` returns it into one slot."""

    def layers(self, layers: range) -> "SlotStates":
        """Returns the states of consecutive layers."""
        return self.map(lambda state: state[layers.start : layers.stop])

    def copy(self, sources: Int32[Array, " R"], targets: Int32[Array, " R"]) -> "SlotStates":
        """Copies slots onto others; all are read before any is written."""
        state = self.gather(sources, jnp.zeros(sources.shape, jnp.bool), over_data=True)
        return self.scatter(targets, state)


@partial(jax.tree_util.register_dataclass, data_fields=("state",), meta_fields=("collectives", "part_rows"))
@dataclass(frozen=True, slots=True)
class ContiguousStates(SlotStates):
    """States of all slots in one array per part, each sharded over the mesh.

    Attributes:
      state: State of all slots, or of this device's under `jax.shard_map`; `sharding.state_partition_specs` says
        how it is sharded.
      part_rows: Numbers of slots of the decode steps that take some slots only.
    """

    state: ModelState
    collectives: Collectives = field(default_factory=Collectives)
    part_rows: tuple[int, ...] = ()

    @classmethod
    def zeros(
        cls,
        config: ModelConfig,
        slots: int,
        dtype: jnp.dtype,
        collectives: Collectives | None = None,
        part_rows: tuple[int, ...] = (),
    ) -> "ContiguousStates":
        """Returns empty slots.

        Args:
          config: The model's config.
          slots: Number of slots of the whole mesh.
          dtype: Dtype of the activations.
          collectives: Collectives of the mesh; None for a single device.
          part_rows: Numbers of slots of the decode steps that take some slots only.
        """
        collectives = collectives or Collectives()
        state = zero_state(config, slots, dtype, model_shards=collectives.model)
        return cls(state, collectives, part_rows)

    def map(self, function: Callable[[ModelState], ModelState]) -> "ContiguousStates":
        return replace(self, state=function(self.state))

    def with_layers(self, layers: range, new: SlotStates) -> "ContiguousStates":
        assert isinstance(new, ContiguousStates)
        return replace(self, state=_with_layers(self.state, layers, new.state))

    @property
    def decode_rows(self) -> tuple[int, ...]:
        return (*self.part_rows, num_rows(self.state[0]))

    def first(self, rows: int) -> ModelState:
        return self.state

    def with_first(self, rows: int, state: ModelState) -> "ContiguousStates":
        return replace(self, state=state)

    def gather(self, slots: Int32[Array, " R"], fresh: Bool[Array, " R"], *, over_data: bool = False) -> ModelState:
        def gather_one(slot: Int32[Array, ""], fresh: Bool[Array, ""]) -> ModelState:
            local = self._local(slot)
            row: ModelState = jax.tree.map(partial(_row_if_local, fresh), _axes(self.state), local, self.state)
            return row

        gathered = _gather_each(gather_one, slots, fresh)
        return tuple(self._replicated(layer, over_data=over_data) for layer in gathered)

    def _replicated(self, layer: LayerState, *, over_data: bool) -> LayerState:
        """Hands rows that other devices have zeros for to all of them."""
        if isinstance(layer, AttentionState):
            return self.collectives.psum_windows(layer, over_data=over_data)
        return self.collectives.psum_slots(layer) if over_data else layer

    def scatter(self, slots: Int32[Array, " R"], state: ModelState) -> "ContiguousStates":
        local, axes = self._local(slots), _axes(self.state)

        def scatter_one(i: Any, old: ModelState) -> ModelState:
            written: ModelState = jax.tree.map(
                lambda axis, slots, old, new: _put_row(axis, 0, old, new, slots[i], i), axes, local, old, state
            )
            return written

        return replace(self, state=_scatter_each(scatter_one, slots, self.state))

    def read(self, layout: StateLayout, slots: Int32[Array, " 1"]) -> RowArrays:
        arrays = arrays_of_row(layout, self.gather(slots, jnp.zeros(1, jnp.bool), over_data=True))

        def whole(stacked: StackedArray, x: Array) -> Array:
            return self.collectives.all_gather_channels(x, stacked.shape[-1]) if stacked.is_sharded else x

        return *map(whole, layout.recurrent, arrays), arrays[-1]

    def restore(self, layout: StateLayout, slots: Int32[Array, " 1"], arrays: RowArrays) -> "ContiguousStates":
        def local(stacked: StackedArray, x: Array) -> Array:
            return self.collectives.local_channels(x, self._width(stacked)) if stacked.is_sharded else x

        local_arrays = (*map(local, layout.recurrent, arrays), arrays[-1])
        return self.scatter(slots, state_of_row(layout, self.state, local_arrays))

    def _width(self, stacked: StackedArray) -> int:
        """Returns the size of the last axis of an array on this device; 0 without a layer of its kind."""
        kind = LAYER_KINDS[stacked.kind].state
        return next((layer[stacked.index].shape[-1] for layer in self.state if isinstance(layer, kind)), 0)

    def _local(self, slots: Int32[Array, "*R"]) -> Any:
        """Returns, for each array, the rows of slots in this device's part, outside of it for other devices' slots."""
        if self.collectives.count == 1:
            return jax.tree.map(lambda _: slots, self.state)

        def layer(part: LayerState) -> Any:
            is_spread = isinstance(part, AttentionState)
            offset = (self.collectives.window_offset if is_spread else self.collectives.slot_offset)(num_rows(part))
            return jax.tree.map(lambda _: slots - offset, part)

        return tuple(map(layer, self.state))


@partial(jax.tree_util.register_dataclass, data_fields=("groups",), meta_fields=())
@dataclass(frozen=True, slots=True)
class BlockedStates(SlotStates):
    """States of all slots on one device, with slots in groups and windows in blocks.

    Attributes:
      groups: States of consecutive groups of slots.
    """

    groups: tuple[ModelState, ...]

    @classmethod
    def zeros(
        cls, config: ModelConfig, slots: int, dtype: jnp.dtype, part_rows: tuple[int, ...], first_block: int
    ) -> "BlockedStates":
        """Returns empty slots.

        Args:
          config: The model's config.
          dtype: Dtype of the activations.
          part_rows: Numbers of slots of the decode steps that take some slots only; a group ends at each.
          first_block: Window rows of the first block; each following block doubles the total.
        """
        blocks = block_sizes(config.window, first_block)
        sizes = [end - start for start, end in pairwise((0, *part_rows, slots))]
        return cls(tuple(zero_state(config, size, dtype, blocks) for size in sizes))

    def map(self, function: Callable[[ModelState], ModelState]) -> "BlockedStates":
        return replace(self, groups=tuple(map(function, self.groups)))

    def with_layers(self, layers: range, new: SlotStates) -> "BlockedStates":
        assert isinstance(new, BlockedStates)
        pairs = zip(self.groups, new.groups, strict=True)
        return replace(self, groups=tuple(_with_layers(old, layers, part) for old, part in pairs))

    @property
    def decode_rows(self) -> tuple[int, ...]:
        return tuple(accumulate(num_rows(group[0]) for group in self.groups))

    def first(self, rows: int) -> ModelState:
        return _join(self.groups[: self._num_groups(rows)])

    def with_first(self, rows: int, state: ModelState) -> "BlockedStates":
        count = self._num_groups(rows)
        sizes = [num_rows(group[0]) for group in self.groups[:count]]
        return replace(self, groups=(*_split(state, sizes), *self.groups[count:]))

    def _num_groups(self, rows: int) -> int:
        return self.decode_rows.index(rows) + 1

    def gather(self, slots: Int32[Array, " R"], fresh: Bool[Array, " R"], *, over_data: bool = False) -> ModelState:
        return _gather_each(self._gather_one, slots, fresh)

    def _gather_one(self, slot: Int32[Array, ""], fresh: Bool[Array, ""]) -> ModelState:
        """Reads one slot; with several groups, only the one that has it."""
        if len(self.groups) == 1:
            (group,) = self.groups
            row: ModelState = jax.tree.map(lambda axis, x: _row_if_local(fresh, axis, slot, x), _axes(group), group)
            return _joined(row)
        ends = self.decode_rows
        place = jnp.where(fresh, len(ends), jnp.sum(slot >= jnp.array(ends)))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(_read_row, self.groups[0], slot))
        starts = (0, *ends[:-1])
        branches = [partial(_read_row, group, slot - start) for group, start in zip(self.groups, starts, strict=True)]
        gathered: ModelState = jax.lax.switch(place, [*branches, lambda: zeros])
        return gathered

    def scatter(self, slots: Int32[Array, " R"], state: ModelState) -> "BlockedStates":
        new, axes, starts = _split_windows(state, self.groups[0]), _axes(self.groups[0]), (0, *self.decode_rows[:-1])

        def scatter_one(i: Any, groups: tuple[ModelState, ...]) -> tuple[ModelState, ...]:
            def put(group: ModelState, start: int) -> ModelState:
                written: ModelState = jax.tree.map(
                    lambda axis, old, new: _put_row(axis, start, old, new, slots[i], i), axes, group, new
                )
                return written

            return tuple(map(put, groups, starts))

        return replace(self, groups=_scatter_each(scatter_one, slots, self.groups))

    def read(self, layout: StateLayout, slots: Int32[Array, " 1"]) -> RowArrays:
        return arrays_of_row(layout, self.gather(slots, jnp.zeros(1, jnp.bool)))

    def restore(self, layout: StateLayout, slots: Int32[Array, " 1"], arrays: RowArrays) -> "BlockedStates":
        return self.scatter(slots, state_of_row(layout, self.groups[0], arrays))


def _axes(state: ModelState) -> Any:
    """Returns the axis of the rows in each array."""
    return tuple(map(slot_axes, state))


def _with_layers(state: ModelState, layers: range, new: ModelState) -> ModelState:
    return (*state[: layers.start], *new, *state[layers.stop :])


def _gather_each(
    gather_one: Callable[[Array, Array], ModelState], slots: Int32[Array, " R"], fresh: Bool[Array, " R"]
) -> ModelState:
    """Gathers one slot after the other into the rows of a state."""
    if slots.shape[0] == 1:
        return gather_one(slots[0], fresh[0])
    stacked = jax.lax.map(lambda item: gather_one(*item), (slots, fresh))
    gathered: ModelState = jax.tree.map(
        lambda axis, x: jnp.moveaxis(jnp.squeeze(x, 1 + axis), 0, axis), _axes(stacked), stacked
    )
    return gathered


def _scatter_each[Tree](scatter_one: Callable[[Any, Tree], Tree], slots: Int32[Array, " R"], old: Tree) -> Tree:
    """Scatters one row after the other into slots."""
    if slots.shape[0] == 1:
        return scatter_one(0, old)
    written: Tree = jax.lax.fori_loop(0, slots.shape[0], scatter_one, old)
    return written


def _read_row(group: ModelState, row: Int32[Array, ""]) -> ModelState:
    state: ModelState = jax.tree.map(lambda axis, x: _row(x, row, axis), _axes(group), group)
    return _joined(state)


def _row_if_local(fresh: Bool[Array, ""], axis: int, row: Int32[Array, ""], x: Array) -> Array:
    """Returns one row of an array; zeros if the row is fresh or outside the array."""
    taken = _row(x, row, axis)
    return jnp.where((row >= 0) & (row < x.shape[axis]) & ~fresh, taken, jnp.zeros_like(taken))


def _row(x: Array, row: Int32[Array, ""] | int, axis: int) -> Array:
    """Returns one row of an array; another row if it is outside."""
    return jax.lax.dynamic_slice_in_dim(x, row, 1, axis)


@partial(jax.jit, static_argnames=("axis", "start"))  # equal arrays are traced once
def _put_row(
    axis: int, start: int, old: Array, new: Array, slot: Int32[Array, ""], source: Int32[Array, ""] | int
) -> Array:
    """Returns `old`, whose first row is slot `start`, with the slot's row replaced by row `source` of `new`."""
    local = slot - start
    inside = (local >= 0) & (local < old.shape[axis])
    value = jnp.where(inside, _row(new, source, axis), _row(old, local, axis))
    return jax.lax.dynamic_update_slice_in_dim(old, value, local, axis)


def _join(groups: Sequence[ModelState]) -> ModelState:
    """Returns groups as one state; their windows stay separate arrays."""

    def layer(*parts: LayerState) -> LayerState:
        if isinstance(parts[0], AttentionState):
            return AttentionState.of_groups(parts)
        return jax.tree.map(lambda axis, *x: jnp.concatenate(x, axis), slot_axes(parts[0]), *parts)

    return groups[0] if len(groups) == 1 else tuple(layer(*parts) for parts in zip(*groups, strict=True))


def _split(state: ModelState, sizes: Sequence[int]) -> tuple[ModelState, ...]:
    """Returns groups of these numbers of rows, the inverse of `_join`."""

    def group(index: int, start: int, size: int) -> ModelState:
        def layer(whole: LayerState) -> LayerState:
            if isinstance(whole, AttentionState):
                return whole.groups[index]
            return jax.tree.map(
                lambda axis, x: jax.lax.slice_in_dim(x, start, start + size, axis=axis), slot_axes(whole), whole
            )

        return tuple(layer(whole) for whole in state)

    if len(sizes) == 1:
        return (state,)
    starts = (0, *accumulate(sizes[:-1]))
    return tuple(group(i, start, size) for i, (start, size) in enumerate(zip(starts, sizes, strict=True)))


def _joined(state: ModelState) -> ModelState:
    """Returns a state with windows in one block."""
    return tuple(layer.joined() if isinstance(layer, AttentionState) else layer for layer in state)


def _split_windows(state: ModelState, like: ModelState) -> ModelState:
    """Returns a state with windows in the blocks of another state's."""

    def layer(whole: LayerState, like: LayerState) -> LayerState:
        return whole.split(like.block_sizes) if isinstance(whole, AttentionState) else whole

    return tuple(map(layer, state, like))
