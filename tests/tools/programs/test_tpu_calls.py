"""Calls of kernels that share code share the one schedule that the compiler wrote down."""

from pathlib import Path

import pytest
from tpu_calls import names_of_schedules
from tpu_hlo import parse_module
from tpu_schedule import Dump

CALL = (
    "  %{} = f32[8,128]{{1,0:T(8,128)}} custom-call(%{}), "
    'custom_call_target="tpu_custom_call", backend_config={{"body": "{}"}}'
)

PROGRAM = "\n".join(
    [
        "HloModule jit_step, is_scheduled=true",
        "",
        "ENTRY %main (x: f32[8,128], y: f32[8,128]) -> f32[8,128] {",
        "  %x = f32[8,128]{1,0:T(8,128)} parameter(0)",
        "  %y = f32[8,128]{1,0:T(8,128)S(1)} parameter(1)",
        CALL.format("step.1", "x", "AAAA"),
        CALL.format("step.2", "y", "AAAA"),
        CALL.format("step.3", "x", "AAAA"),
        CALL.format("step.4", "y", "AAAA"),
        CALL.format("mlp.1", "x", "BBBB"),
        CALL.format("mlp.2", "y", "BBBB"),
        CALL.format("other.1", "x", "CCCC"),
        "}",
    ]
)


@pytest.fixture
def dump(tmp_path: Path) -> Dump:
    for name in ("step.1", "step.2", "mlp.1"):
        (tmp_path / f"17-{name}-01-final_bundles.txt").write_text("")
    return Dump(tmp_path)


def test_calls_share_the_schedule_of_the_same_code(dump: Dump) -> None:
    """Operands in another memory are other code; its schedule counts only if there is none with the same memories."""
    schedules = names_of_schedules(parse_module(PROGRAM), dump)
    own = {name: name for name in ("step.1", "step.2", "mlp.1")}
    assert schedules == own | {"step.3": "step.1", "step.4": "step.2", "mlp.2": "mlp.1"}
