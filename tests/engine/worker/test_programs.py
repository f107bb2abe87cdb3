"""Which programs there are, and where they are kept."""

import errno
import os
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from cache_settings import restored
from roost.engine.core.config import MAX_PREFILL_ROWS
from roost.engine.core.errors import ConfigError
from roost.engine.model.collectives import Collectives
from roost.engine.model.config import ModelConfig
from roost.engine.platform import CPU, CPU_MESH, CPU_OPTIONS, TPU
from roost.engine.worker.programs import (
    compile_all,
    decode_rows,
    keep_programs,
    layer_slices,
    new_pool,
    prefill_names,
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


def test_a_cpu_reads_prompts_one_by_one_and_the_shortest_chunk_in_parts() -> None:
    model = ModelConfig(64, 64, 64, 1, 64, ("recurrent", "attention") * 2)
    alone = step_shapes(model, 256, CPU)
    assert (alone.prefill, alone.prefill_rows, len(alone.parts)) == (((1, 64), (1, 128), (1, 256)), 1, 2)
    for platform in (TPU, CPU_MESH):
        others = step_shapes(model, 256, platform)
        assert (others.prefill_rows, others.parts, others.decode_steps) == (4, (range(4),), 1)
    assert prefill_names(1, 64, 2) == ["prefill 1x64 part 1", "prefill 1x64 part 2"]
    assert prefill_names(1, 128, 2) == ["prefill 1x128"]


@pytest.mark.parametrize(
    ("rows", "groups"), [(2, (2,)), (4, (4,)), (6, (4, 2)), (32, (4, 4, 8, 16)), (33, (4, 4, 8, 16, 1))]
)
def test_groups_of_slots(rows: int, groups: tuple[int, ...]) -> None:
    config = ModelConfig(64, 64, 64, 1, 64, ("recurrent", "attention"))
    pool = jax.eval_shape(lambda: new_pool(config, rows, jnp.dtype("bfloat16"), CPU))
    assert decode_rows(pool) == tuple(accumulate(groups))


def test_a_slot_is_copied_in_place_in_a_pool_of_groups() -> None:
    """It takes memory for one slot or two, and not for the pool."""
    config = ModelConfig(64, 64, 64, 1, 64, ("recurrent", "attention"))
    pool = jax.eval_shape(lambda: new_pool(config, 32, jnp.dtype("bfloat16"), CPU))
    slot = jax.ShapeDtypeStruct((1,), jnp.int32)
    compiled = (
        jax.jit(partial(copy_step, Collectives()), donate_argnums=0).lower(pool, slot, slot).compile(dict(CPU_OPTIONS))
    )
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * config.state_bytes(2)


@pytest.fixture
def cache_settings_restored() -> Iterator[None]:
    with restored():
        yield


@pytest.mark.usefixtures("cache_settings_restored")
def test_programs_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "when needed"
    keep_programs(folder)
    reports: list[tuple[int, int]] = []
    twice = jax.jit(lambda x: 2 * x + jnp.float32(0.125))
    lower: dict[str, Any] = {"twice": lambda: twice.lower(jnp.zeros(3)), "again": lambda: twice.lower(jnp.zeros(5))}
    with ThreadPoolExecutor(1) as executor:
        compiled = compile_all(lower, {}, executor, lambda done, total: reports.append((done, total)))
    assert compiled["twice"].result()(jnp.ones(3)).tolist() == [2.125] * 3
    assert reports == [(1, 2), (2, 2)]
    assert any(folder.iterdir())


@pytest.mark.usefixtures("cache_settings_restored")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_without_room_nothing_is_kept_and_all_goes_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(dir: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    with warnings.catch_warnings():
        keep_programs(tmp_path)
    (record,) = caplog.records
    assert record.getMessage() == f"compile_cache {tmp_path}: no program will be kept there ({os.strerror(number)})"


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match=r"compile_cache .*/file/x: cannot be written to .*or off"):
        keep_programs(file / "x")
