"""What is served: the sizes of its steps, the table of its programs, and the slots that they read and copy."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.engine.devices.platform import CPU, CPU_MESH, CPU_NATIVE, CPU_OPTIONS, TPU, Platform, StepSizes
from roost.engine.model.config import ModelConfig
from roost.engine.model.griffin import abstract_model
from roost.engine.model.sharding import Collectives
from roost.engine.model.state import state_bytes
from roost.engine.types.config import MAX_PREFILL_ROWS, EngineConfig, Speculation
from roost.engine.worker.lowering import lower
from roost.engine.worker.served import Devices, Served, layer_slices, prefill_shapes
from roost.engine.worker.steps import copy_step

PAGE: Final = Path(__file__).parents[3] / "docs/explanation/architecture.md"
TWO_LAYERS: Final = ModelConfig(64, 64, 64, 1, 64, ("recurrent", "attention"))
FOUR_LAYERS: Final = ModelConfig(64, 64, 64, 1, 64, ("recurrent", "attention") * 2)


def served_by(
    platform: Platform,
    slots: int = 4,
    model: ModelConfig = TWO_LAYERS,
    shards: Collectives = Collectives(),  # noqa: B008  (frozen)
    dtype: str = "bfloat16",
    **settings: Any,
) -> Served:
    """Returns a model on a platform, without parameters."""
    return Served(model, EngineConfig(**settings), Devices(platform, shards), jnp.dtype(dtype), slots)


def with_parameters(served: Served) -> Served:
    graph, params = abstract_model(served.config, served.dtype, served.devices.platform)
    return replace(served, graph=graph, params=params)


@pytest.mark.parametrize(
    ("chunk", "shapes"),
    [
        (64, {(1, 64)}),
        (128, {(1, 64), (2, 64), (1, 128)}),
        (320, {(1, 64), (2, 64), (4, 64), (1, 128), (2, 128), (1, 256), (1, 320)}),
        (1024, {(n, t) for n in (1, 2, 4, 8) for t in (64, 128, 256, 512, 1024) if n * t <= 1024}),
    ],
)
def test_prefill_shapes(chunk: int, shapes: set[tuple[int, int]]) -> None:
    assert set(prefill_shapes(chunk, MAX_PREFILL_ROWS)) == shapes


@pytest.mark.parametrize(
    ("chunk", "shapes"),
    [
        (64, {(1, 64)}),
        (128, {(2, 64), (1, 128)}),
        (512, {(1, 128), (2, 128), (1, 256), (8, 64), (1, 512)}),
        (1024, {(1, 128), (2, 128), (1, 256), (8, 64), (1, 512), (1, 1024)}),
    ],
)
def test_a_tpu_prefills_short_prompts_together(chunk: int, shapes: set[tuple[int, int]]) -> None:
    served = served_by(TPU, prefill_chunk=chunk)
    assert set(served.prefill_shapes) == shapes
    for length in (64, 128, 256, 512):
        most = served.limits().rows_of(length)
        assert length > chunk or served.fit(most, length).rows >= most


@pytest.mark.parametrize(
    ("depth", "size", "slices"),
    [(1, 2, [(0, 1)]), (4, 2, [(0, 2), (2, 4)]), (5, 2, [(0, 2), (2, 4), (4, 5)]), (5, None, [(0, 5)])],
)
def test_layer_slices(depth: int, size: int | None, slices: list[tuple[int, int]]) -> None:
    assert [(part.start, part.stop) for part in layer_slices(depth, size)] == slices


def test_a_cpu_prefills_prompts_one_by_one_and_in_slices_of_the_layers() -> None:
    alone = served_by(CPU, model=FOUR_LAYERS, prefill_chunk=256)
    assert alone.prefill_shapes == ((1, 64), (1, 128), (1, 256))
    assert served_by(CPU_NATIVE, prefill_chunk=256).prefill_shapes == ((1, 128), (1, 256))
    assert (alone.limits().prefill_rows, alone.limits().prefill_layer_slices) == (1, 2)
    for platform in (TPU, CPU_MESH):
        others = served_by(platform, model=FOUR_LAYERS, prefill_chunk=256).limits()
        assert (others.prefill_rows, others.prefill_layer_slices) == (4, 1)


def test_a_batch_takes_the_smallest_shape_that_fits() -> None:
    served = served_by(TPU, prefill_chunk=256)
    assert [served.fit(rows, 65) for rows in (1, 2)] == [(1, 128), (2, 128)]
    assert [served.fit(rows, 1) for rows in (1, 2, 3, 4)] == [(1, 128), (2, 128), (4, 64), (4, 64)]


def test_the_table_has_each_program_once() -> None:
    """Hosts identify programs by their labels."""
    served = with_parameters(served_by(CPU, 6, FOUR_LAYERS, prefill_chunk=128, request_snapshots=True))
    assert [program.label for program in served.programs] == [
        *("decode 1", "decode 4", "decode 6", "first token"),
        *("prefill 1x64 slice 1", "prefill 1x64 slice 2", "prefill 1x128 slice 1", "prefill 1x128 slice 2"),
        *("score", "mask", "copy", "restore", "read", "replay"),
    ]


def test_the_page_about_the_architecture_shows_the_table() -> None:
    served = served_by(CPU, 4, FOUR_LAYERS, prefill_chunk=64, request_snapshots=True, speculation=Speculation())
    table: dict[str, tuple[set[str], set[str]]] = {}
    for program in with_parameters(served).programs:
        reads, replaces = table.setdefault(re.sub(r" \d.*", "", program.label), (set(), set()))
        reads.update(program.reads)
        replaces.update(program.replaces)
    section = PAGE.read_text().split("## Device programs")[1].split("## Kinds")[0]
    rows = re.findall(r"^\| `([a-z ]+)` \|.*\|(.*)\|(.*)\|$", section, re.MULTILINE)
    assert table == {name: tuple(set(re.findall(r"`(\w+)`", cell)) for cell in cells) for name, *cells in rows}


def test_drafts_take_one_or_two_programs() -> None:
    """Without speculation there are no such programs, and slots keep nothing for them."""
    without, with_drafts = served_by(CPU, 40), served_by(CPU, 40, speculation=Speculation())
    assert list(without.programs.speculate) == []
    native = served_by(CPU_NATIVE, 40, speculation=Speculation())
    assert [program.label for program in with_drafts.programs.speculate.values()] == ["speculate 1", "speculate 8"]
    assert [program.label for program in native.programs.speculate.values()] == ["speculate 8"]
    assert len(jax.tree.leaves(with_drafts.pool)) == len(jax.tree.leaves(without.pool)) + 2


@pytest.mark.sweep
def test_a_round_with_drafts_copies_no_ring() -> None:
    """It writes rejected tokens into rings, and restores what was there, in place."""
    served = with_parameters(served_by(CPU, dtype="float32", speculation=Speculation(1)))
    text = lower(served.programs.speculate[4], served).compile(compiler_options=CPU_OPTIONS).as_text()
    assert "f32[4,2048,64]" in text, "rings"
    assert re.findall(r"f32\[4,2048,64\]\S* copy\(", text) == []


@pytest.mark.parametrize(
    ("platform", "slots", "steps"),
    [
        *((CPU, slots, steps) for slots, steps in ((1, (1, 2)), (4, (1, 4)), (33, (1, 4, 8, 16, 32, 33)))),
        *(
            (CPU_NATIVE, slots, steps)
            for slots, steps in ((4, (1, 4)), (32, (1, 4, 8, 32)), (200, (1, 4, 8, 32, 128, 200)))
        ),
    ],
)
def test_steps_of_cpus(platform: Platform, slots: int, steps: tuple[int, ...]) -> None:
    """With native kernels, idle rows cost little, so that fewer steps are compiled. The scheduler knows all sizes."""
    served = served_by(platform, slots)
    assert served.decode_rows == steps
    assert served.limits().decode_rows == served_by(CPU, slots).decode_rows


@pytest.mark.parametrize(
    ("rows", "shards", "steps"),
    [
        (8, (1, 1), (8,)),
        (9, (1, 1), (8, 9)),
        (542, (1, 1), (8, 32, 128, 256, 512, 542)),
        (512, (1, 1), (8, 32, 128, 256, 512)),
        (256, (4, 1), (32, 128, 256)),
        (1024, (1, 8), (64, 128, 256, 512, 1024)),
        (1152, (2, 4), (64, 128, 256, 512, 1024, 1152)),
        (1128, (2, 4), (1128,)),  # 141 slots of each device, which blocks of 8 do not divide
    ],
)
def test_steps_take_some_slots_of_each_device(rows: int, shards: tuple[int, int], steps: tuple[int, ...]) -> None:
    served = served_by(TPU, rows, shards=Collectives(*shards))
    assert served.decode_rows == steps


@pytest.mark.parametrize(
    ("slots", "shards", "order"),
    [
        (4, (1, 1), (0, 1, 2, 3)),
        (8, (2, 2), (0, 4, 2, 6, 1, 5, 3, 7)),  # data, then model, then the next row of each
        (5, (2, 2), (0, 4, 2, 6, 1)),
    ],
)
def test_slots_are_spread_over_shards(slots: int, shards: tuple[int, int], order: tuple[int, ...]) -> None:
    assert served_by(TPU, slots, shards=Collectives(*shards)).slot_order == order


def on_mesh(data: int, model: int, own: int) -> Served:
    """Returns a model with `own` slots on each device, and a step for each number of them."""
    every = replace(TPU, sizes=StepSizes(tuple(range(1, data * model * own + 1))))
    return served_by(every, data * model * own, shards=Collectives(data, model))


@given(data=st.integers(1, 5), model=st.integers(1, 5), own=st.integers(2, 4))
def test_every_row_is_a_slot_once_and_shards_fill_evenly(data: int, model: int, own: int) -> None:
    order = on_mesh(data, model, own).slot_order
    assert sorted(order) == list(range(data * model * own))
    for count in range(len(order) + 1):
        used = [sum(slot // own == part for slot in order[:count]) for part in range(data * model)]
        assert max(used) - min(used) <= 1


@given(data=st.integers(1, 3), model=st.integers(1, 3), own=st.integers(2, 6), draws=st.data())
def test_a_step_has_the_first_slots_of_each_device(data: int, model: int, own: int, draws: st.DataObject) -> None:
    """As many requests as a step has rows fit into it if they have the first slots in the order."""
    served, devices = on_mesh(data, model, own), data * model
    assert served.decode_rows == tuple(devices * n for n in range(1, own + 1))
    slots = served.slot_order[: draws.draw(st.integers(1, served.rows))]
    size, places = served.decode_places(slots)
    assert size == next(size for size in served.decode_rows if size >= len(slots))
    step = [device * own + n for device in range(devices) for n in range(size // devices)]
    assert [step[place] for place in places] == list(slots)


def test_a_slot_is_copied_in_place() -> None:
    """The program's temporaries hold a slot or two, not the pool."""
    served, slot = served_by(CPU, 32), jax.ShapeDtypeStruct((1,), jnp.int32)
    copy = jax.jit(partial(copy_step, Collectives()), donate_argnums=0).lower(served.pool, slot, slot)
    assert copy.compile(dict(CPU_OPTIONS)).memory_analysis().temp_size_in_bytes < 4 * state_bytes(TWO_LAYERS, 2)
