"""Runs compiled device programs: the sole owner of the parameters and of the state pool. Arrays in, arrays out.

If the devices belong to several hosts, each host has an executor. The leader's sends every call to the followers, whose
executors repeat it.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Int

from ..devices.hosts import Leader
from ..model.collectives import REPLICATED
from ..model.griffin import Params
from ..model.state import RowArrays
from ..sampling.logprobs import Logprobs
from ..sampling.sampler import Sampled
from ..types.arrays import HostArray
from ..types.output_constraint import TokenMask
from .background_compilation import BackgroundCompiler, CompileCounter
from .compilation import CompiledProgram
from .leaves import ArrayName, Leaves, UsedLeaves, leaf_slices, leaf_structures, used_leaves
from .programs import DevicePrograms, PrefillShape, Program
from .served import DeviceLayout
from .speculative_steps import Speculated
from .steps import FirstTokenInput, PrefillInput, PrefillResult, ReplayInput, StatePool


class DeviceArrays:
    """Arrays that stay on the devices from one program to the next.

    They are the parameters, the state pool, and `hidden`, the activations of all tokens of the last prefill step.

    Args:
      params: Parameters of the model.
    """

    def __init__(self, params: Params, pool: StatePool) -> None:
        self._structures = leaf_structures(params, pool)
        self._slices = leaf_slices(params, pool)
        self._leaves: list[Array | None] = [*jax.tree.leaves((params, pool)), None]

    def take(self, indices: tuple[int, ...]) -> tuple[Array | None, ...]:
        """Returns the leaves with these indices."""
        leaves = self._leaves
        return tuple([leaves[index] for index in indices])

    def replace(self, indices: tuple[int, ...], arrays: tuple[Array, ...]) -> None:
        """Replaces the leaves with these indices by a program's results."""
        leaves = self._leaves
        for index, array in zip(indices, arrays, strict=True):
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

    def _tree(self, name: ArrayName) -> Any:
        return jax.tree.unflatten(self._structures[name], self._leaves[self._slices[name]])

    def _set_tree(self, name: ArrayName, tree: Any) -> None:
        self._leaves[self._slices[name]] = self._structures[name].flatten_up_to(tree)


class Executor:
    """Runs the compiled programs one after the other. Calls don't wait, and return arrays that may not be ready yet.

    Args:
      layout: The model's place on its devices.
      programs: The model's programs.
      compiled: The compiled programs, by the label of the one that was traced; without the ones of `programs.later`.
      arrays: Parameters and state pool.
      compiles: Counter of compilations since all programs were compiled.
      later: Compiler of the programs that are missing, not started yet.
      leader: Connections to the followers, if this process leads several hosts.

    Every method that runs a program raises `EngineDeadError` if a host has been lost.
    """

    def __init__(
        self,
        layout: DeviceLayout,
        programs: DevicePrograms,
        compiled: Mapping[str, CompiledProgram],
        arrays: DeviceArrays,
        compiles: CompileCounter,
        later: BackgroundCompiler,
        leader: Leader | None = None,
    ) -> None:
        self.layout = layout
        self.programs = programs
        self.compiled: dict[str, CompiledProgram] = {}
        self._traced: dict[str, UsedLeaves] = {}
        self._used: dict[str, UsedLeaves] = {}
        self.arrays = arrays
        self.compiles = compiles
        self.leader = leader
        self.later = later
        for program in programs:
            if program not in programs.later:
                self._add(program, compiled[program.traced.label])

    def compile_later(self) -> None:
        """Starts to compile the programs that are missing."""
        self.later.start(self._add, self.compiles)

    def close(self) -> None:
        """Stops compiling and counting, and lets followers end. The devices' memory goes with the last reference."""
        self.later.stop()
        self.compiles.stop()
        if self.leader is not None:
            self.leader.close()

    def has(self, program: Program[Any] | None) -> bool:
        """Returns whether a program is there and compiled."""
        return program is not None and program.label in self.compiled

    def decode(self, active: Bool[np.ndarray, " R"], steps: int) -> Sampled:
        """Generates tokens in the active slots.

        Args:
          active: Whether each slot of the first R gets tokens, device by device; R is one of `programs.decode`.
          steps: Maximum number of tokens per slot.

        Returns:
          Tokens `[K, R]` for the K of the program, of which the first `steps` are meant.
        """
        return self._run(self.programs.decode[len(active)], active, np.int32(steps))

    def speculate(
        self,
        active: Bool[np.ndarray, " R"],
        limits: Int[np.ndarray, " R"],
        forced: Int[np.ndarray, "R T"],
        steps: int,
    ) -> Speculated:
        """Generates tokens in the active slots, with drafts.

        Args:
          active: See `decode`; R is one of `programs.speculate`.
          limits, forced: See `speculative_step`.
          steps: Maximum number of rounds.
        """
        return self._run(self.programs.speculate[len(active)], active, limits, forced, np.int32(steps))

    def prefill(self, shape: PrefillShape, inputs: PrefillInput, layer_slice: int = 0) -> PrefillResult:
        """Prefills chunks with one slice of the layers.

        Args:
          shape: Compiled shape of the chunks.
          inputs: The chunks.
          layer_slice: Index of the slice; slices run in order, with nothing between them that prefills.
        """
        return self._run(self.programs.prefill[shape][layer_slice], inputs)

    def first_token(self, inputs: FirstTokenInput) -> Sampled:
        """Samples the token after each prompt, and makes its slot ready to decode."""
        return self._run(self.programs.first_token, inputs)

    def score(self, targets: Int[np.ndarray, "R T"]) -> Logprobs:
        """Returns log-probabilities `[R, T]` of the tokens that follow each token of the last prefill."""
        return self._run(self.programs.score[targets.shape[1]], targets)

    def set_masks(self, slots: Int[np.ndarray, " R"], masks: TokenMask) -> None:
        """Sets the token masks `[R, W]` of some slots; slots past the pool are padding."""
        self._run(self.programs.set_mask, slots, masks)

    def copy_slot(self, source: int, target: int) -> None:
        """Copies a slot onto another."""
        self._run(self.programs.copy_slot, _slot(source), _slot(target))

    def restore(self, slot: int, end: HostArray | None, state: Iterable[HostArray]) -> None:
        """Scatters a snapshot into a slot.

        Args:
          end: Activation of its last token; None if no first token follows it.
          state: Its arrays in the order of `StateLayout.formats`.
        """
        width = self.programs.restore.inputs[1]
        row = np.zeros(width.shape, width.dtype) if end is None else end[None]
        self._run(self.programs.restore, _slot(slot), row, *state)

    def read_slot(self, slot: int) -> RowArrays:
        """Gathers a slot's state, after all programs so far."""
        assert self.programs.read_slot is not None
        return self._run(self.programs.read_slot, _slot(slot))

    def replay(self, inputs: ReplayInput) -> None:
        """Sets the decoding state of some slots."""
        assert self.programs.replay is not None
        self._run(self.programs.replay, inputs)

    def follow(self, calls: Iterable[tuple[str, list[HostArray]]]) -> None:
        """Repeats the leader's calls, each given as a program's label and the leaves of its inputs."""
        by_label = {program.label: program for program in self.programs}
        for label, leaves in calls:
            program = by_label[label]
            self._call(program, jax.tree.unflatten(jax.tree.structure(program.inputs), leaves))

    def _run[Result](self, program: Program[Result], *inputs: Any) -> Result:
        if self.leader is not None:
            self.leader.send(program.label, [np.asarray(x) for x in jax.tree.leaves(inputs)])
        return self._call(program, inputs)

    def _call[Result](self, program: Program[Result], inputs: tuple[Any, ...]) -> Result:
        traced, used, take = self._traced[program.label], self._used[program.label], self.arrays.take
        kept, donated = Leaves(take(used.kept), traced.kept), Leaves(take(used.donated), traced.donated)
        written, result = self.compiled[program.label](kept, donated, *self._place(inputs))
        self.arrays.replace(used.written, written.arrays)
        returned: Result = result
        return returned

    def _add(self, program: Program[Any], compiled: CompiledProgram) -> None:
        """Adds a compiled program, which other threads find once all of it is there."""
        self._traced[program.label] = used_leaves(compiled)
        self._used[program.label] = self._traced[program.label].moved(program.moves)
        self.compiled[program.label] = compiled

    def _place(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the inputs as a program takes them. Without a mesh, it moves host arrays itself, which costs less."""
        if self.layout.mesh is None:
            return inputs
        replicated = NamedSharding(self.layout.mesh, REPLICATED)
        on_all: tuple[Any, ...] = jax.tree.map(partial(_on_all, replicated), inputs)
        return on_all


def _on_all(replicated: NamedSharding, x: Any) -> jax.Array:
    """Returns an array that every process has, on all devices, without comparing processes as `device_put` would."""
    array = np.asarray(x)
    return jax.make_array_from_callback(array.shape, replicated, lambda index: array[index])


def _slot(slot: int) -> HostArray:
    return np.array([slot], np.int32)
