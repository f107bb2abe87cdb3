"""The report of a step or a chunk on a CPU counts every instruction once, and names what limits the step."""

import pytest
from cpu_step import Need, Rates, operations, page, total_of

PROGRAM = """
ENTRY %main (x: f32[4]) -> f32[4] {
  %mlp.1 = bf16[32,768]{1,0} custom-call(%a, %b), custom_call_target="roost_int8_gated_mlp", api_version=4
  %step.2 = (bf16[32,768]{1,0}, f32[32,768]{1,0}) custom-call(%a), custom_call_target="roost_recurrent_step"
  %add.3 = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused
  %loop.4 = (s32[], f32[4]{0}) while(%start), condition=%is_wanted, body=%step
  ROOT %copy.5 = f32[4]{0} copy(%add.3)
}
"""


def test_instructions_have_the_rows_of_their_kernels_or_kinds() -> None:
    assert dict(operations(PROGRAM)) == {
        "mlp.1": "int8 gated mlp",
        "step.2": "recurrent step",
        "add.3": "XLA: fusion",
        "copy.5": "XLA: copy",
    }


def test_operations_of_several_programs_are_added() -> None:
    total = total_of([{"rms norm": (0.5, 3.0)}, {"rms norm": (0.25, 4.0), "XLA: copy": (0.125, 1.0)}])
    assert total == {"rms norm": (0.75, 7.0), "XLA: copy": (0.125, 1.0)}


@pytest.mark.parametrize(
    ("need", "floor"), [(Need(bytes=100e6, products=1e9), "10.00 ms"), (Need(bytes=1e6, products=40e9), "20.00 ms")]
)
def test_the_floor_is_the_larger_of_reading_and_products(need: Need, floor: str) -> None:
    calls = {"int8 gated mlp": (0.030, 12.0), "XLA: fusion": (0.010, 400.0), "XLA: copy": (1e-6, 3.0)}
    report = page([0.040, 0.050, 0.090], calls, need, Rates(read=10e9, products=2e12))
    assert f"Floor: {floor}" in report
    assert "| int8 gated mlp | 30.00 | 75% | 12 |" in report
    assert "copy" not in report, "too short to show"
    assert "40.00 ms at least, 50.00 ms in the median" in report
