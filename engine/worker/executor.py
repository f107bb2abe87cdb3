"""Runs compiled device programs: the sole owner of the parameters and of the state pool. Arrays in, arrays out.

If the devices belong to several hosts, each host has an executor. The leader's sends every call to the followers, whose
executors repeat it.
"""

from collections.abc import Iterable
from functools import partial
from io import BytesIO
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array

from ..devices.hosts import Leader
from ..model.config import Params
from ..model.sharding import REPLICATED
from ..types.host_memory import HostArray
from .compilation import CompileCounter, CompiledProgram, CompiledPrograms
from .lowering import Leaves, UsedLeaves, leaf_slices, leaf_structures, passed_leaves, used_leaves
from .served import ArrayName, Program
from .steps import StatePool


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

    def get(self, name: ArrayName) -> Any:
        """Returns the tree of some arrays. A program that replaces a leaf of it takes the old one's memory."""
        return jax.tree.unflatten(self._structures[name], self._leaves[self._slices[name]])

    def put(self, name: ArrayName, tree: Any) -> None:
        """Replaces the tree of some arrays."""
        self._leaves[self._slices[name]] = self._structures[name].flatten_up_to(tree)


class Executor:
    """Runs the compiled programs one after the other. Calls don't wait, and return arrays that may not be ready yet.

    Args:
      compiled: The compiled programs.
      arrays: Parameters and state pool.
      leader: Connections to the followers, if this process leads several hosts.

    Attributes:
      served: The model on its devices.
      programs: Its programs.
      compiled: The compiled programs, by label.
      compiles: Counter of compilations since all programs were compiled.
    """

    def __init__(self, compiled: CompiledPrograms, arrays: DeviceArrays, leader: Leader | None = None) -> None:
        self.served = compiled.served
        self.programs = self.served.programs
        self.compiled: dict[str, CompiledProgram] = {}
        self._traced: dict[str, UsedLeaves] = {}
        self._used: dict[str, UsedLeaves] = {}
        self.arrays = arrays
        self.compiles = CompileCounter()
        self.leader = leader
        for program in self.programs:
            label, outcome = program.label, compiled.outcomes[program.traced.label]
            self._traced[label] = used_leaves(outcome)
            self._used[label] = passed_leaves(outcome, program, self.served)
            self.compiled[label] = outcome

    def close(self) -> None:
        """Stops counting, and lets followers end. The devices' memory goes with the last reference."""
        self.compiles.stop()
        if self.leader is not None:
            self.leader.close()

    def run[Result](self, program: Program[Result] | None, *inputs: Any) -> Result:
        """Runs a program.

        Args:
          program: One of `programs`.
          inputs: What its step takes from the host.

        Raises:
          EngineDeadError: A host has been lost.
        """
        assert program is not None
        if self.leader is not None:
            pairs = zip(jax.tree.leaves(inputs), jax.tree.leaves(program.inputs), strict=True)
            self.leader.send(program.label, b"".join(np.asarray(x, like.dtype).tobytes() for x, like in pairs))
        return self._call(program, inputs)

    def follow(self, calls: Iterable[tuple[str, bytes]]) -> None:
        """Repeats the leader's calls, each given as a program's label and the bytes of its inputs."""
        by_label = {program.label: program for program in self.programs}
        for label, inputs in calls:
            program = by_label[label]
            self._call(program, jax.tree.map(partial(_read_array, BytesIO(inputs)), program.inputs))

    def _call[Result](self, program: Program[Result], inputs: tuple[Any, ...]) -> Result:
        traced, used, take = self._traced[program.label], self._used[program.label], self.arrays.take
        kept, donated = Leaves(take(used.kept), traced.kept), Leaves(take(used.donated), traced.donated)
        written, result = self.compiled[program.label](kept, donated, *self._place(inputs))
        self.arrays.replace(used.written, written.arrays)
        return result

    def _place(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the inputs as a program takes them. Without a mesh, it moves host arrays itself, which costs less."""
        if self.served.devices.mesh is None:
            return inputs
        replicated = NamedSharding(self.served.devices.mesh, REPLICATED)
        return jax.tree.map(partial(_on_all, replicated), inputs)


def _read_array(stream: BytesIO, like: Any) -> HostArray:
    """Returns the next array of a stream, which has the shape and the dtype of another one."""
    return np.frombuffer(stream.read(like.size * like.dtype.itemsize), like.dtype).reshape(like.shape)


def _on_all(replicated: NamedSharding, x: Any) -> jax.Array:
    """Returns an array that every process has, on all devices, without comparing processes as `device_put` would."""
    array = np.asarray(x)
    return jax.make_array_from_callback(array.shape, replicated, lambda index: array[index])
