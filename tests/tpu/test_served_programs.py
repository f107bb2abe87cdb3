"""The programs that serve compiles at automatic slots fit their chips, and the estimate leaves little of it unused.

The largest decode program and one prefill of 2B and 9B stand for all programs, whose code is estimated.
"""

import re
from typing import NamedTuple

import pytest
from roost.engine.capacity.chips import TPUS, AheadOfTime, compile_for_chips, memory_limit, open_chips
from roost.engine.capacity.roofline import DEVICES, MemoryModel, compute_roofline, estimated_slots, memory_of_served
from roost.engine.checkpoint.source import open_model
from roost.engine.types.config import ONE_DEVICE, EngineConfig, MeshShape
from roost.engine.worker.compilation import demands
from roost.engine.worker.served import PrefillShape, open_weights
from roost.kernels import XLA, Backend, backends
from sweeps import swept

pytestmark = pytest.mark.tpu_compile


@pytest.mark.parametrize("chip", TPUS)
def test_the_roofline_has_the_limit_of_the_compiler(chip: str) -> None:
    assert memory_limit(chip, open_chips(chip, ONE_DEVICE)) == DEVICES[chip].hbm_bytes


@pytest.mark.parametrize(
    ("model", "chip", "shards", "quantize", "least", "kernels"),
    [
        ("2b", "v5e", ONE_DEVICE, None, 500, (27, 26)),
        ("9b", "v5e", ONE_DEVICE, "int8", 210, (39, 38)),
        ("9b", "v5e", MeshShape(1, 4), None, 1600, (39, 38)),
        *swept(("2b", "v6e", ONE_DEVICE, None, 1300, (27, 26)), ("9b", "v6e", ONE_DEVICE, None, 500, (39, 38))),
    ],
    ids=str,
)
def test_programs_at_automatic_slots_fit(
    model: str, chip: str, shards: MeshShape, quantize: str | None, least: int, kernels: tuple[int, int]
) -> None:
    """Decode has the kernels of temporal blocks and of sampling; more rows than fit leave the MLP to the compiler."""
    found = start(model, chip, shards, EngineConfig(quantize=quantize, dtype="bfloat16"))
    assert found.slots >= least
    assert found.custom_calls >= kernels
    unused = found.unused_bytes / (found.memory.row_bytes + found.memory.decode_row_bytes)
    assert unused < max(0.02 * found.slots, 8), "the estimate is within a fiftieth, or a row tile, of what would fit"


@pytest.mark.parametrize(("model", "least", "kernels"), [("2b", 1300, (106, 104)), *swept(("9b", 400, (154, 152)))])
def test_programs_with_matrices_and_windows_in_int8_fit(model: str, least: int, kernels: tuple[int, int]) -> None:
    """A slot takes half the memory, so that what a start keeps free counts for twice as many."""
    found = start(model, "v5e", ONE_DEVICE, EngineConfig(quantize="int8", kv_dtype="int8", dtype="bfloat16"))
    assert found.slots >= least
    assert found.custom_calls == kernels, "two or three of each layer, the argmax and the sampler"
    assert found.unused_bytes < 0.02 * found.memory.limit_bytes


class Start(NamedTuple):
    """Programs of a start at automatic slots, all of which fit.

    Attributes:
      slots: Number of slots.
      memory: Memory of a chip.
      custom_calls: Kernels of the largest decode step, and of a prefill.
      unused_bytes: Memory that both leave.
    """

    slots: int
    memory: MemoryModel
    custom_calls: tuple[int, ...]
    unused_bytes: int


def start(model: str, chip: str, shards: MeshShape, settings: EngineConfig) -> Start:
    """Compiles the largest decode program and a prefill as a start does; other programs' code is estimated."""
    source = open_model(f"random:{model}").with_kv_dtype(settings.kv_dtype)
    devices = open_chips(chip, shards)
    limit = memory_limit(chip, devices)
    with open_weights(source, settings, devices) as weights:
        memory = memory_of_served(weights, limit)
        slots = estimated_slots(memory, devices.shards)
        served = weights.served.with_slots(slots)
    roofline = compute_roofline(source.config, DEVICES[chip], 2, quantize=settings.quantize, shards=shards)
    assert slots == roofline.slots, "roost plan and a start give the same number"
    programs = (served.programs.decode[slots], served.programs.prefill[PrefillShape(1, 512)][0])
    compiled = {program.label: compile_for_chips(served, program) for program in programs}
    measured = {label: each for label, each in compiled.items() if isinstance(each, AheadOfTime)}
    assert len(measured) == len(programs)
    assert not any(replaceable(each.text) == XLA for each in measured.values())
    sizes = {label: each.memory for label, each in measured.items()}
    code = memory.code_bytes - sum(each.code_bytes for each in sizes.values())
    most = max(demand.hbm_bytes for demand in demands(sizes, limit).values()) + code
    assert most <= limit
    return Start(slots, memory, tuple(each.custom_calls for each in measured.values()), limit - most)


def replaceable(text: str) -> Backend:
    """Returns the TPU backend without a program's kernels: XLA if the backend does not know one by its name."""
    names = set(re.findall(r'op_name="[^"]*?(\w+)/pallas_call"', text))
    assert names
    return backends.TPU.without(names)
