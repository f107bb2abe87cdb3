"""Compiled programs take and return the leaves that they use, and no others."""

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import pytest
from roost.engine.devices.platform import CPU
from roost.engine.model.config import ModelConfig
from roost.engine.model.griffin import abstract_model
from roost.engine.types.config import EngineConfig
from roost.engine.worker import compilation
from roost.engine.worker.compilation import OutOfMemoryError
from roost.engine.worker.executor import DeviceArrays
from roost.engine.worker.lowering import idle_bytes, leaf_slices, lower, passed_leaves
from roost.engine.worker.served import (
    DevicePrograms,
    Devices,
    Program,
    Served,
)
from roost.engine.worker.steps import StatePool

CONFIG = ModelConfig(64, 64, 64, 1, 64, ("recurrent", "attention") * 3)
DTYPE = jnp.dtype("float32")


def served_on_cpu() -> Served:
    """Returns a model with eight slots."""
    graph, params = abstract_model(CONFIG, DTYPE, CPU)
    settings = EngineConfig(prefill_chunk=64, state_cache_inexact=True)
    return Served(CONFIG, settings, Devices(CPU), DTYPE, 8, graph, params)


@pytest.fixture(scope="module")
def served() -> Served:
    return served_on_cpu()


def names(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


ENDS: Final = {"['pool'].ends"}

type Taken = tuple[set[str], set[str]]


def taken(served: Served, program: Program[Any]) -> Taken:
    """Returns the names of the leaves that a program reads only, and of those that it replaces."""
    every = [*names({"params": served.params, "pool": served.pool}), "hidden"]
    used = passed_leaves(lower(program.traced, served), program, served)
    return {every[index] for index in used.kept}, {every[index] for index in used.donated}


def stays(served: Served) -> set[str]:
    return set(names({"params": served.params, "pool": served.pool}))


@pytest.mark.parametrize("rows", [4, 8])
def test_a_step_takes_all_parameters_and_the_whole_pool(served: Served, rows: int) -> None:
    """All but the activations from which first tokens are sampled."""
    kept, donated = taken(served, served.programs.decode[rows])
    assert kept | donated == stays(served) - ENDS
    assert all(name.startswith("['pool']") for name in donated)
    assert not any("sampling" in name or "allowed" in name for name in donated), "they stay as they are"


def test_a_slice_takes_its_layers_parameters_and_states(served: Served) -> None:
    first, second = (taken(served, program) for program in next(iter(served.programs.prefill.values())))
    assert not any(".slots" in name for kept, donated in (first, second) for name in kept | donated)
    assert not {name for name in first[0] & second[0] if "embedding" not in name}
    assert first[1] | second[1] == {name for name in stays(served) if ".states" in name} | ENDS | {"hidden"}
    assert "hidden" in second[1] - first[1]


PARTS: dict[str, tuple[Callable[[DevicePrograms], Any], tuple[str, ...]]] = {
    "copy": (lambda programs: programs.copy_slot, ("['pool']",)),
    "mask": (lambda programs: programs.set_mask, ("['pool'].slots.memory.allowed",)),
    "restore": (lambda programs: programs.restore, ("['pool'].states", *ENDS)),
}


@pytest.mark.parametrize("label", PARTS)
def test_a_copy_takes_what_it_replaces(served: Served, label: str) -> None:
    program, parts = PARTS[label]
    expected = {name for name in stays(served) if name.startswith(parts)}
    assert taken(served, program(served.programs)) == (set(), expected)


def test_a_program_that_reads_replaces_nothing(served: Served) -> None:
    assert served.programs.read_slot is not None
    kept, donated = taken(served, served.programs.read_slot)
    assert kept == {name for name in stays(served) if ".states" in name}
    assert not donated


def size(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_a_refused_program_needs_memory_for_what_it_does_not_take(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(lowered: Any, options: Any) -> None:
        raise OutOfMemoryError(1000, 10)

    lowered = lower(served.programs.copy_slot, served)
    assert idle_bytes(lowered, served) == size(served.params)
    monkeypatch.setattr(compilation, "compile_lowered", refuse)
    with pytest.raises(OutOfMemoryError) as raised:
        compilation.compile_beside_all(served, lowered)
    assert raised.value.used_bytes == 1000 + size(served.params)


def test_arrays_are_taken_and_replaced_leaf_by_leaf() -> None:
    pool = StatePool(jnp.zeros(1), jnp.ones(2), jnp.ones(5))  # type: ignore[arg-type]
    arrays = DeviceArrays({"a": jnp.zeros(3), "b": jnp.zeros(4)}, pool)
    slices = leaf_slices(arrays.get("params"), pool)
    assert slices == {"params": slice(0, 2), "pool": slice(2, 5), "hidden": slice(5, 6)}
    assert [x.size for x in arrays.take((3, 1)) if x is not None] == [2, 4]
    arrays.replace((2, 4), (jnp.full(1, 7), jnp.full(5, 8)))
    pool = arrays.get("pool")
    assert (pool.states.tolist(), pool.ends.tolist()) == ([7], [8] * 5)
    arrays.put("pool", pool._replace(states=jnp.full(1, 9)))
    arrays.put("params", {"a": jnp.ones(3), "b": jnp.ones(4)})
    assert [x.tolist() for x in arrays.take((2, 0)) if x is not None] == [[9], [1, 1, 1]]
