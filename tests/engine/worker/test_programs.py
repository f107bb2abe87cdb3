"""Shapes of the device programs, and the slots that they read and copy."""

import re
from functools import partial
from itertools import accumulate

import jax
import jax.numpy as jnp
import pytest
from roost.engine.devices.platform import CPU, CPU_MESH, CPU_OPTIONS, TPU
from roost.engine.model.collectives import Collectives
from roost.engine.model.config import ModelConfig
from roost.engine.model.griffin import abstract_model
from roost.engine.model.state_layout import state_bytes
from roost.engine.types.config import MAX_PREFILL_ROWS
from roost.engine.types.speculation import Speculation
from roost.engine.worker.lowering import lower
from roost.engine.worker.programs import (
    ModelShapes,
    decode_rows,
    device_programs,
    layer_slices,
    new_pool,
    prefill_shapes,
    step_shapes,
)
from roost.engine.worker.steps import copy_step


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
    ("depth", "size", "slices"),
    [(1, 2, [(0, 1)]), (4, 2, [(0, 2), (2, 4)]), (5, 2, [(0, 2), (2, 4), (4, 5)]), (5, None, [(0, 5)])],
)
def test_layer_slices(depth: int, size: int | None, slices: list[tuple[int, int]]) -> None:
    assert [(part.start, part.stop) for part in layer_slices(depth, size)] == slices


def test_a_cpu_prefills_prompts_one_by_one_and_in_slices_of_the_layers() -> None:
    model = ModelConfig(64, 64, 64, 1, 64, ("recurrent", "attention") * 2)
    alone = step_shapes(model, 256, CPU)
    assert (alone.prefill, alone.prefill_rows, len(alone.layer_slices)) == (((1, 64), (1, 128), (1, 256)), 1, 2)
    for platform in (TPU, CPU_MESH):
        others = step_shapes(model, 256, platform)
        assert (others.prefill_rows, others.layer_slices, others.decode_steps) == (4, (range(4),), 1)


def test_a_batch_takes_the_smallest_shape_that_fits() -> None:
    shapes = step_shapes(ModelConfig(64, 64, 64, 1, 64, ("recurrent",)), 256, TPU)
    assert [shapes.fit(rows, 65) for rows in (1, 2)] == [(1, 128), (2, 128)]
    assert [shapes.fit(rows, 1) for rows in (1, 3, 4)] == [(1, 64), (4, 64), (4, 64)]


def test_labels_are_unique() -> None:
    """Hosts identify programs by their labels."""
    model, dtype = ModelConfig(64, 64, 64, 1, 64, ("recurrent", "attention") * 2), jnp.dtype("float32")
    graph, params = abstract_model(model, dtype, CPU)
    pool = jax.eval_shape(lambda: new_pool(model, 6, dtype, CPU))
    shapes = ModelShapes(model, graph, params, pool, dtype)
    programs = device_programs(shapes, step_shapes(model, 128, CPU), reads_slots=True, replays=True)
    labels = [program.label for program in programs]
    assert len(set(labels)) == len(labels)
    assert {"decode 4", "decode 6", "prefill 1x64 slice 2", "prefill 1x128 slice 2", "score 64", "replay"} < set(labels)


def test_drafts_take_a_program_for_each_number_of_slots_that_leaves_room_for_them() -> None:
    """Without speculation there are no such programs, and slots keep nothing for them."""
    model, dtype = ModelConfig(64, 64, 64, 1, 64, ("recurrent", "attention")), jnp.dtype("float32")
    graph, params = abstract_model(model, dtype, CPU)
    pools = [jax.eval_shape(partial(new_pool, model, 40, dtype, CPU, drafts=drafts)) for drafts in (False, True)]
    programs = [
        device_programs(
            ModelShapes(model, graph, params, pool, dtype), step_shapes(model, 128, CPU), speculation=settings
        )
        for pool, settings in zip(pools, (None, Speculation()), strict=True)
    ]
    assert [list(each.speculate) for each in programs] == [[], [1, 4, 8, 16]]
    assert len(jax.tree.leaves(pools[1])) == len(jax.tree.leaves(pools[0])) + 2


@pytest.mark.sweep
def test_a_round_with_drafts_copies_no_ring() -> None:
    """It writes rejected tokens into rings, and restores what was there, in place."""
    model, dtype = ModelConfig(64, 64, 64, 1, 64, ("recurrent", "attention")), jnp.dtype("float32")
    graph, params = abstract_model(model, dtype, CPU)
    pool = jax.eval_shape(partial(new_pool, model, 4, dtype, CPU, drafts=True))
    shapes = ModelShapes(model, graph, params, pool, dtype)
    program = device_programs(shapes, step_shapes(model, 128, CPU), speculation=Speculation(1)).speculate[4]
    compiled = lower(program, shapes).compile(compiler_options=CPU_OPTIONS)
    text = compiled.as_text()
    assert {"f32[1,512,64]", "f32[3,512,64]"} <= set(re.findall(r"f32\[\d,512,64\]", text)), "rings of both groups"
    assert re.findall(r"f32\[[13],(?:512|1024|2048),64\]\S* copy\(", text) == []


@pytest.mark.parametrize(
    ("rows", "groups"), [(1, (1,)), (2, (1, 1)), (4, (1, 3)), (32, (1, 3, 4, 8, 16)), (33, (1, 3, 4, 8, 16, 1))]
)
def test_groups_of_slots(rows: int, groups: tuple[int, ...]) -> None:
    config = ModelConfig(64, 64, 64, 1, 64, ("recurrent", "attention"))
    pool = jax.eval_shape(lambda: new_pool(config, rows, jnp.dtype("bfloat16"), CPU))
    assert decode_rows(pool) == tuple(accumulate(groups))


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
    config = ModelConfig(64, 64, 64, 1, 64, ("recurrent", "attention"))
    pool = jax.eval_shape(lambda: new_pool(config, rows, jnp.dtype("bfloat16"), TPU, Collectives(*shards)))
    assert decode_rows(pool) == steps


def test_a_slot_is_copied_in_place_in_a_pool_of_groups() -> None:
    """The program's temporaries hold a slot or two, not the pool."""
    config = ModelConfig(64, 64, 64, 1, 64, ("recurrent", "attention"))
    pool = jax.eval_shape(lambda: new_pool(config, 32, jnp.dtype("bfloat16"), CPU))
    slot = jax.ShapeDtypeStruct((1,), jnp.int32)
    compiled = (
        jax.jit(partial(copy_step, Collectives()), donate_argnums=0).lower(pool, slot, slot).compile(dict(CPU_OPTIONS))
    )
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * state_bytes(config, 2)
