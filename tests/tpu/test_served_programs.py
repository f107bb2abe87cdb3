"""The programs that serve compiles at automatic slots fit their chips, and the estimate leaves little of it unused.

The largest decode program and one prefill of 2B and 9B stand for all programs, whose code is estimated.
"""

import re

import pytest
from roost.engine.checkpoint.source import open_model
from roost.engine.core.config import EngineConfig
from roost.engine.core.mesh import ONE_DEVICE, MeshShape
from roost.engine.roofline import DEVICES, compute_roofline
from roost.engine.worker.aot import CHIPS, AheadOfTime, compile_for_chips, hbm_limit, open_chips
from roost.engine.worker.fitting import demands, estimated_slots, memory_of_served
from roost.engine.worker.loading import open_weights
from roost.engine.worker.programs import PrefillShape
from roost.engine.worker.served import served_programs
from roost.kernels import XLA, Backend, backends

pytestmark = pytest.mark.tpu_compile


@pytest.mark.parametrize("chip", CHIPS)
def test_the_roofline_has_the_limit_of_the_compiler(chip: str) -> None:
    assert hbm_limit(open_chips(chip, ONE_DEVICE)) == DEVICES[chip].hbm_bytes


@pytest.mark.parametrize(
    ("model", "chip", "shards", "quantize", "least", "kernels"),
    [
        ("2b", "v5e", ONE_DEVICE, None, 500, (27, 26)),
        ("9b", "v5e", ONE_DEVICE, "int8", 210, (39, 38)),
        ("2b", "v6e", ONE_DEVICE, None, 1300, (27, 26)),
        ("9b", "v6e", ONE_DEVICE, None, 500, (39, 38)),
        ("9b", "v5e", MeshShape(1, 4), None, 1600, (39, 38)),
    ],
    ids=str,
)
def test_programs_at_automatic_slots_fit(
    model: str, chip: str, shards: MeshShape, quantize: str | None, least: int, kernels: tuple[int, int]
) -> None:
    """Decode has the kernels of temporal blocks and of sampling; more rows than 512 leave the MLP to the compiler."""
    source, settings = open_model(f"random:{model}"), EngineConfig(quantize=quantize, dtype="bfloat16")
    devices = open_chips(chip, shards)
    limit = hbm_limit(devices)
    with open_weights(source, settings, devices.shards, devices.platform, devices.mesh) as weights:
        memory = memory_of_served(source.config, settings, weights, devices, limit)
        slots = estimated_slots(memory, devices.shards)
        served = served_programs(source.config, settings, weights, devices, slots)
    roofline = compute_roofline(source.config, DEVICES[chip], 2, is_quantized=quantize is not None, shards=shards)
    assert least <= slots == roofline.slots, "roost plan and a start give the same number"
    programs = (served.programs.decode[slots], served.programs.prefill[PrefillShape(1, 512)][0])
    compiled = {program.label: compile_for_chips(served, program) for program in programs}
    measured = {label: each.memory for label, each in compiled.items() if isinstance(each, AheadOfTime)}
    assert len(measured) == len(programs)
    assert tuple(each.custom_calls for each in compiled.values()) >= kernels
    assert not any(replaceable(each.text) == XLA for each in compiled.values() if isinstance(each, AheadOfTime))
    code = memory.code_bytes - sum(each.code_bytes for each in measured.values())
    most = max(demand.hbm_bytes for demand in demands(measured, limit).values()) + code
    assert most <= limit
    unused = (limit - most) / (memory.row_bytes + memory.decode_row_bytes)
    assert unused < max(0.02 * slots, 8), "the estimate is within a fiftieth, or a row tile, of what would fit"


def replaceable(text: str) -> Backend:
    """Returns the TPU backend without a program's kernels: XLA if the backend does not know one by its name."""
    names = set(re.findall(r'op_name="[^"]*?(\w+)/pallas_call"', text))
    assert names
    return backends.TPU.without(names)
