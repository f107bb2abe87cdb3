"""Number of slots that fit a device: estimate, demand of compiled programs and reductions, on made-up numbers."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.engine.capacity.roofline import (
    MAX_REDUCTIONS,
    MemoryModel,
    estimated_slots,
    fewer_slots,
    fit_slots,
    memory_model,
)
from roost.engine.devices.platform import TPU
from roost.engine.model.config import PRESETS
from roost.engine.types.config import ONE_DEVICE, EngineConfig, MeshShape
from roost.engine.types.errors import ConfigError
from roost.engine.worker.earlier_starts import read_slots, slots_key, write_slots
from roost.engine.worker.served import Devices, Served

GIB = 2**30
MEMORY = MemoryModel(
    limit_bytes=16 * GIB,
    weight_bytes=5 * GIB,
    row_bytes=2**24,
    decode_bytes=GIB // 8,
    decode_row_bytes=2**20,
    prefill_bytes=GIB // 4,
    code_bytes=GIB // 8,
)


def test_the_estimate_leaves_room_for_the_largest_temporaries() -> None:
    rows = MEMORY.rows
    assert rows % 8 == 0
    free = MEMORY.free_bytes - MEMORY.decode_bytes
    assert (rows + 8) * (MEMORY.row_bytes + MEMORY.decode_row_bytes) > free
    assert rows * (MEMORY.row_bytes + MEMORY.decode_row_bytes) <= free
    of_prefill = replace(MEMORY, prefill_bytes=4 * GIB).rows
    assert of_prefill < rows, "the temporaries of a prefill count where they are larger than those of decode"


def test_an_estimate_counts_the_slots_of_all_devices() -> None:
    assert estimated_slots(MEMORY, MeshShape(2, 4)) == 8 * estimated_slots(MEMORY, ONE_DEVICE)
    with pytest.raises(ConfigError, match=r"a slot takes 16\.0 MiB, so not even 8 fit"):
        estimated_slots(replace(MEMORY, weight_bytes=16 * GIB), ONE_DEVICE)


def memory_of(model: str, limit_bytes: int, weight_bytes: int, chunk: int = 512) -> MemoryModel:
    """Returns the memory of a TPU that serves a preset in bfloat16."""
    served = Served(PRESETS[model], EngineConfig(prefill_chunk=chunk), Devices(TPU), jnp.dtype("bfloat16"))
    return memory_model(served, limit_bytes, weight_bytes, is_quantized=False)


def test_larger_chunks_and_models_leave_fewer_rows() -> None:
    chunk, model = memory_of("2b", 32 * GIB, 5 * GIB, 65536), memory_of("9b", 32 * GIB, 5 * GIB)
    assert max(chunk.rows, model.rows) < memory_of("2b", 32 * GIB, 5 * GIB).rows


def test_every_power_of_two_below_the_rows_is_a_program_that_takes_memory() -> None:
    """608 slots of 2B on a v5e have steps of 512 slots at most; 1,512 on a v6e have one of 1,024, too."""
    v5e, v6e = (memory_of("2b", limit, 5_366_000_000) for limit in (int(15.75 * GIB), int(31.24 * GIB)))
    assert (v5e.rows, v6e.rows) == (608, 1512)
    assert v6e.code_bytes - v5e.code_bytes == 26 * 390_000


@given(st.integers(8, 5000), st.integers(1, 2**34), st.integers(2**20, 2**25), st.sampled_from([(1, 1), (2, 4)]))
def test_fewer_slots_save_what_is_missing(slots: int, excess: int, row: int, shape: tuple[int, int]) -> None:
    shards = MeshShape(*shape)
    try:
        left = fewer_slots(slots, excess, row, shards)
    except ConfigError:
        assert slots // shards.count - math.ceil(excess / row) < 8
        return
    assert (slots // shards.count - left // shards.count) * row >= excess
    assert 8 <= left < slots
    assert left % shards.count == 0


@dataclass
class Compiler:
    """Compiles programs that need `fixed` bytes and `row` bytes per slot.

    Attributes:
      tried: Numbers of slots that were compiled for.
    """

    fixed: int
    row: int
    tried: list[int] = field(default_factory=list)

    def __call__(self, slots: int) -> "Programs":
        self.tried.append(slots)
        return Programs(slots, self.fixed + slots * self.row)


class Programs(NamedTuple):
    """Programs for some slots, which need some bytes."""

    slots: int
    num_bytes: int

    def excess_bytes(self, limit_bytes: int) -> int:
        return max(0, self.num_bytes - limit_bytes)


DEVICE = replace(MEMORY, limit_bytes=1000, row_bytes=10)
"""A device with 1,000 bytes, 10 of which a slot less saves."""


def test_an_estimate_that_fits_is_kept() -> None:
    compiler = Compiler(0, 10)
    assert fit_slots(96, compiler, DEVICE, ONE_DEVICE).slots == 96
    assert compiler.tried == [96]


def test_slots_are_taken_away_until_all_programs_fit() -> None:
    compiler = Compiler(100, 10)
    assert fit_slots(104, compiler, DEVICE, ONE_DEVICE).slots == 88
    assert compiler.tried == [104, 88]


def test_slots_are_taken_away_a_few_times_only() -> None:
    compiler = Compiler(990, 1)
    with pytest.raises(ConfigError, match=r"do not fit with \d+ slots after 2 reductions"):
        fit_slots(800, compiler, DEVICE, ONE_DEVICE)
    assert len(compiler.tried) == MAX_REDUCTIONS + 1


def test_hosts_agree_before_each_compilation() -> None:
    """Another host begins with 64 slots, so this one compiles for 64, too."""
    compiler = Compiler(0, 10)
    assert fit_slots(96, compiler, DEVICE, ONE_DEVICE, lambda slots: min(slots, 64)).slots == 64
    assert compiler.tried == [64]


def test_a_host_whose_programs_fit_follows_one_whose_do_not() -> None:
    compiler, answers = Compiler(0, 10), iter([96, 80, 80])
    assert fit_slots(96, compiler, DEVICE, ONE_DEVICE, lambda _: next(answers)).slots == 80
    assert compiler.tried == [96, 80]


def test_slots_are_remembered_by_all_that_decides_them(tmp_path: Path) -> None:
    def key(model: str = "2b", limit: int = 16 * GIB, **settings: Any) -> str:
        served = Served(PRESETS[model], EngineConfig(**settings), Devices(TPU), jnp.dtype("float32"))
        return slots_key("12345678", served, limit)

    write_slots(tmp_path, key(), 512)
    assert read_slots(tmp_path, key()) == 512
    assert [path.name for path in tmp_path.iterdir()] == [f"slots-{key()}"]
    others = [key(quantize="int8"), key(prefill_chunk=64), key(model="9b"), key(limit=GIB)]
    assert [read_slots(tmp_path, other) for other in others] == [None] * 4
    assert read_slots(None, key()) is None


def test_a_file_that_names_no_slots_is_ignored(tmp_path: Path) -> None:
    for text in ("", "many", "-3"):
        (tmp_path / "slots-key").write_text(text)
        assert read_slots(tmp_path, "key") is None
    write_slots(tmp_path / "missing", "key", 8)
    assert not (tmp_path / "missing").exists()
