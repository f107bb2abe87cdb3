"""States of all slots: one array per part of the state, each of which may be sharded over a mesh.

Kernels of a decode step read and write the first slots of the arrays in place.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from .layer_kinds import LAYER_KINDS, AttentionState, LayerState, num_rows, slot_axes
from .sharding import Collectives
from .state import ModelState, RowArrays, StackedArray, StateLayout, arrays_of_row, state_of_row


@partial(jax.tree_util.register_dataclass, data_fields=("state",), meta_fields=("collectives",))
@dataclass(frozen=True, slots=True)
class SlotStates:
    """States of all slots; an immutable pytree, whose donated arrays are updated in place.

    Slots are numbered over the whole pool. A slot past its end reads as zeros and is never written.

    Attributes:
      state: State of all slots, or of this device's under `jax.shard_map`; `sharding.state_partition_specs` says
        how it is sharded. A decode step of the first slots of each device takes all of it, and leaves the rows of the
        others as they are; `Collectives.first_rows` says where the step's rows are.
    """

    state: ModelState
    collectives: Collectives = field(default_factory=Collectives)

    def map(self, function: Callable[[ModelState], ModelState]) -> "SlotStates":
        """Applies a function to the state."""
        return replace(self, state=function(self.state))

    def layers(self, layers: range) -> "SlotStates":
        """Returns the states of consecutive layers."""
        return self.map(lambda state: state[layers.start : layers.stop])

    def with_layers(self, layers: range, new: "SlotStates") -> "SlotStates":
        """Replaces consecutive layers by the layers of `new`."""
        return self.map(lambda state: (*state[: layers.start], *new.state, *state[layers.stop :]))

    def copy(self, sources: Int32[Array, " R"], targets: Int32[Array, " R"]) -> "SlotStates":
        """Copies slots onto others; all are read before any is written."""
        state = self.gather(sources, jnp.zeros(sources.shape, jnp.bool), over_data=True)
        return self.scatter(targets, state)

    def gather(self, slots: Int32[Array, " R"], fresh: Bool[Array, " R"], *, over_data: bool = False) -> ModelState:
        """Returns copies of some slots' states, with windows replicated over `model`.

        Args:
          fresh: Rows that are zeros instead of copies.
          over_data: Whether slots of any data shard are gathered, not only of this one.
        """

        count, local, axes = slots.shape[0], self._local(slots), _axes(self.state)

        def gather_one(i: Any, rows: ModelState) -> ModelState:
            return jax.tree.map(
                lambda axis, own, x, rows: _copy_row(axis, x, own[i], rows, i, ~fresh[i]), axes, local, self.state, rows
            )

        nothing = jax.tree.map(partial(_zero_rows, count), axes, self.state)
        gathered = jax.lax.fori_loop(0, count, gather_one, nothing)
        return tuple(self._replicated(layer, over_data=over_data) for layer in gathered)

    def _replicated(self, layer: LayerState, *, over_data: bool) -> LayerState:
        """Hands rows that other devices have zeros for to all of them."""
        if isinstance(layer, AttentionState):
            return self.collectives.psum_windows(layer, over_data=over_data)
        return self.collectives.psum_slots(layer) if over_data else layer

    def scatter(self, slots: Int32[Array, " R"], state: ModelState) -> "SlotStates":
        """Writes rows of a state as `gather` returns it into the slots that this device holds, one slice each."""
        local, axes = self._local(slots), _axes(self.state)

        def scatter_one(i: Any, old: ModelState) -> ModelState:
            return jax.tree.map(lambda axis, own, x, rows: _copy_row(axis, rows, i, x, own[i]), axes, local, old, state)

        return self.map(lambda old: jax.lax.fori_loop(0, slots.shape[0], scatter_one, old))

    def read(self, layout: StateLayout, slots: Int32[Array, " 1"]) -> RowArrays:
        """Returns the whole state of one slot on every device.

        Args:
          layout: Layout of the model's state.
        """
        arrays = arrays_of_row(layout, self.gather(slots, jnp.zeros(1, jnp.bool), over_data=True))

        def whole(stacked: StackedArray, x: Array) -> Array:
            return self.collectives.all_gather_channels(x, stacked.shape[-1]) if stacked.is_sharded else x

        return *map(whole, layout.recurrent, arrays), arrays[-1]

    def restore(self, layout: StateLayout, slots: Int32[Array, " 1"], arrays: RowArrays) -> "SlotStates":
        """Writes a state as `read` returns it into one slot."""

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


def _axes(state: ModelState) -> Any:
    """Returns the axis of the rows in each array."""
    return tuple(map(slot_axes, state))


def _zero_rows(count: int, axis: int, x: Array) -> Array:
    """Returns rows of zeros of an array."""
    return jnp.zeros((*x.shape[:axis], count, *x.shape[axis + 1 :]), x.dtype)


@partial(jax.jit, static_argnames="axis")  # equal arrays are traced once
def _copy_row(
    axis: int,
    source: Array,
    taken: Int32[Array, ""] | int,
    target: Array,
    put: Int32[Array, ""] | int,
    is_wanted: Bool[Array, ""] | bool = True,
) -> Array:
    """Returns `target` with its row `put` replaced by row `taken` of `source`, if it is wanted and both rows exist."""
    exist = (taken >= 0) & (taken < source.shape[axis]) & (put >= 0) & (put < target.shape[axis])
    row = partial(jax.lax.dynamic_slice_in_dim, slice_size=1, axis=axis)
    value = jnp.where(exist & is_wanted, row(source, taken), row(target, put))
    return jax.lax.dynamic_update_slice_in_dim(target, value, put, axis)
