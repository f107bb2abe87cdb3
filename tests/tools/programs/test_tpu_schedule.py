"""The parser of the TPU compiler's schedules counts the bundles that are executed."""

from pathlib import Path

import pytest
from tpu_schedule import Dump, count_cycles, parse_schedule

LOOP = """
= control target key start
LH: loop header
= control target key end

     0   :  { %s10_s0 = smov 0 /* copy for cssa */ }
   0x1 LB: > { %s12_s0 = sadd.s32 1, %s11_s0  ;;  %s11_s0 = sphi %s10_s0, %s12_s0 /* phi
copy */ } /* Start region 5 :: Start region 6 */
   0x2   : > { %p1_p0 = scmp.ge.s32.totalorder %s12_s0, 10 /* loop exit test */ }
   0x3   : > { %9 = sbr.rel (!%p1_p0) target = $region5  ;;  %v1_v0 = vadd.f32 %v2_v1, %v2_v1 }
   0x4   : >> {}
   0x5   : > {}
   0x6   : > {}
   0x7   : > {} /* End region 5 */
   0x8   :  {} /* exit bundle: %fusion = fusion() */
"""
"""A loop of 10 iterations of 7 bundles, 4 of which lie behind its branch, between two bundles."""

WHEN = """
     0   :  { %s10_s0 = smov 0 }
   0x1 LB: > { %s12_s0 = sadd.s32 1, %s11_s0 } /* Start region 5 */
   0x2   : > { %p2_p1 = scmp.ne.s32.totalorder %s12_s0, 4 }
   0x3   : > { %8 = sbr.rel (%p2_p1) target = $region7 }
   0x4   : > {}
   0x5   : > {}
   0x6   : > {}
   0x7   : > {}
   0x8   : > {} /* Start region 8 */
   0x9   : > {} /* End region 8 */
   0xa PF: > { %p1_p0 = scmp.ge.s32.totalorder %s12_s0, 10 } /* Start/End empty region 7 */
   0xb   : > { %9 = sbr.rel (!%p1_p0) target = $region5 }
   0xc   :  {}
   0xd   :  {}
   0xe   :  {}
   0xf   :  {}
"""
"""A loop of 10 iterations of 13 bundles and, in the fourth iteration, 2 more."""


def test_a_loop_counts_as_often_as_it_runs() -> None:
    assert count_cycles(parse_schedule(LOOP)) == 1 + 10 * 7 + 1


def test_a_condition_on_the_grid_holds_when_it_does() -> None:
    assert count_cycles(parse_schedule(WHEN)) == 1 + 10 * 13 + 2


def unknown(condition: str) -> str:
    """Returns a schedule of 6 bundles and a body of 3, which runs unless `condition`."""
    return f"""
     0   :  {{ %s1_s0 = smov 256  ;;  %s2_s1 = smov 3 }}
   0x1   :  {{ %s3_s1 = sadd.s32 %s1_s0, %s2_s1 }}
   0x2   :  {{ %s4_s2 = sld [smem:[#allocation2 + %s3_s1]] }}
   0x3   :  {{ %p1_p0 = scmp.le.s32.totalorder %s4_s2, 0 }}
   0x4   :  {{ %9 = sbr.rel ({condition}) target = $region9 }}
   0x5   :  {{}}
   0x6   :  {{}}
   0x7   :  {{}}
   0x8   :  {{}}
   0x9   :  {{}}
   0xa   :  {{}}
   0xb   :  {{}}
   0xc PF:  {{}} /* Start/End empty region 9 */
"""


@pytest.mark.parametrize(("table", "cycles"), [((), 13), ((5, 5, 5, 0), 10), ((0, 0, 0, 7), 13)])
def test_a_body_under_an_unknown_condition_counts(table: tuple[int, ...], cycles: int) -> None:
    """The condition depends on column 3 of a table."""
    assert count_cycles(parse_schedule(unknown("%p1_p0")), table) == cycles


@pytest.mark.parametrize(("address", "table"), [(" + $0xa", (5,) * 10 + (0,)), ("", (0, 5))])
def test_a_table_of_one_row_has_constant_addresses(address: str, table: tuple[int, ...]) -> None:
    text = unknown("%p1_p0").replace("[#allocation2 + %s3_s1]", f"[#allocation2{address}]")
    schedule = parse_schedule(text)
    assert (count_cycles(schedule), count_cycles(schedule, table)) == (13, 10)


def test_what_an_unknown_condition_guards_is_executed() -> None:
    """A body's first instructions may move before its branch, with its condition as their predicate."""
    schedule = unknown("%p1_p0").replace("%9 = sbr", "%s10_s5 = smov (!%p1_p0), 7  ;;  %9 = sbr")
    schedule = schedule.replace("   0x9   :  {}", "   0x9   :  { %p3_p3 = scmp.eq.s32.totalorder %s10_s5, 7 }")
    schedule = schedule.replace("   0xa   :  {}", "   0xa   :  { %9 = sbr.rel (!%p3_p3) target = $region0 }")
    assert count_cycles(parse_schedule(schedule)) == 13


def test_bundles_read_before_they_write() -> None:
    swap = "     0   :  { %s1_s0 = smov 1  ;;  %s2_s1 = smov 2 }\n"
    swap += "   0x1   :  { %s3_s0 = smov %s2_s1  ;;  %s4_s1 = smov %s1_s0 }\n"
    swap += "   0x2   :  { %p1_p0 = scmp.eq.s32.totalorder %s3_s0, %s4_s1 }\n"
    swap += "   0x3   :  { %9 = sbr.rel (%p1_p0) target = $region1 }\n" + "   0x4   :  {}\n" * 10
    assert count_cycles(parse_schedule(swap)) == 14


def test_spilled_registers_come_back() -> None:
    spilled = LOOP.replace("   0x2   : > {", "   0x2   : > { %7 = sst [smem:[#allocation3_spill]] %s12_s0  ;; ")
    spilled = spilled.replace("   0x5   : > {}", "   0x5   : > { %s12_s0 = sld [smem:[#allocation3_spill]] }")
    assert count_cycles(parse_schedule(spilled)) == 1 + 10 * 7 + 1


def test_negative_numbers_and_logic() -> None:
    loop = LOOP.replace("sadd.s32 1, %s11_s0", "ssub.s32 %s11_s0, 4294967295")
    loop = loop.replace(
        "%p1_p0 = scmp.ge.s32.totalorder %s12_s0, 10",
        "%p4_p4 = scmp.lt.u32.totalorder %s12_s0, 4294967286  ;;  %p1_p0 = scmp.ge.s32.totalorder %s12_s0, 10",
    )
    loop = loop.replace("(!%p1_p0)", "(%p5_p5)")
    loop = loop.replace("   0x3   : > {", "   0x3   : > { %p5_p5 = pnand %p4_p4, %p1_p0 }\n   0x3   : > {")
    assert count_cycles(parse_schedule(loop)) == 1 + 10 * 8 + 1


ENDLESS = LOOP.replace(", 10", ", 2147483647")


def test_a_loop_without_a_known_end_has_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpu_schedule.MAX_SCALAR_BUNDLES", 1000)
    assert count_cycles(parse_schedule(ENDLESS)) is None


@pytest.fixture
def dump(tmp_path: Path) -> Dump:
    """Returns a dump with one function that two instructions call, and one that is part of the top level."""
    for number, name, text in [(1, "fusion.7", LOOP), (2, "copy.1", WHEN), (3, "TLP", WHEN + LOOP)]:
        (tmp_path / f"17-{name}-0{number}-final_bundles.txt").write_text(text)
        (tmp_path / f"17-{name}-00-schedule-analysis_final_bundles.txt").write_text("Schedule analysis")
    calls = [("fusion.7", " (@tlp), hlo-overlay: 4"), ("fusion.9", " (@tlp), hlo-overlay: 4"), ("copy.1", "")]
    details = [
        f"HLO:\n  operation: %{name} = f32[8] op()\n  emitted bundle range: [0x3, 0x9){it}" for name, it in calls
    ]
    (tmp_path / "17-TLP-02-hlo-details.txt").write_text("\n".join(details))
    return Dump(tmp_path)


def test_instructions_with_the_same_code_share_a_function(dump: Dump) -> None:
    assert dump.cycles("fusion.7") == dump.cycles("fusion.9") == 72
    assert dump.cycles("copy.1") == 133
    assert dump.cycles("bitcast.3") == 0


def test_a_function_without_a_known_end_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpu_schedule.MAX_SCALAR_BUNDLES", 1000)
    for name, text in [("fusion.7", LOOP), ("fusion.8", ENDLESS)]:
        (tmp_path / f"17-{name}-01-final_bundles.txt").write_text(text)
    dump = Dump(tmp_path)
    assert (dump.cycles("fusion.7"), dump.has_end("fusion.7")) == (72, True)
    assert (dump.cycles("fusion.8"), dump.has_end("fusion.8")) == (9, False)
    assert dump.has_end("bitcast.3")


def test_the_top_level_is_what_lies_between_the_functions(dump: Dump) -> None:
    assert dump.top_level == 9


def test_the_predicate_of_a_load_may_stand_behind_its_address() -> None:
    (bundle,) = parse_schedule(
        "     0   :  { %s4_s2 = sld [smem:[#allocation2 + %s3_s1]] (!%p1_p0) }\n"
    ).scalar.values()
    (load,) = bundle
    assert (load.opcode, load.target, load.predicate) == ("sld", "s2", ("p0", True))
