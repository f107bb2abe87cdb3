"""Launches, loops, sorts and copies are counted in what XLA dumps of a program for a GPU, and what its kernels take."""

from pathlib import Path

import pytest
from gpu_dump import (
    LOAD_CYCLES,
    block_cycles,
    blocks_per_multiprocessor,
    count,
    count_copies,
    count_graph_launches,
    count_launches,
    count_sorts,
    kernel_resources,
    parse_report,
    parse_thunks,
)
from roost.engine.capacity.chips import CARDS

THUNKS = """\
000: kCommandBuffer [source       | next=528 (1)] 
    001: kCustomKernel   [source        | next=002 (1)] embed grid: [640, 1, 1] threads: [128, 1, 1]  shared_memory: 0 bytes
    002: kCublasLtMatmul [prev=001 (1)  | next=003 (3)] kCublasLtMatmul
    003: kAsyncStart   [source        | sink         ] stream=computation_stream[0], async_id=3
        004: kDynamicSliceFusion [source | sink] params=1, results=1
    005: kAsyncDone    [source        | sink         ] async_id=3
528: kConditional   [prev=000 (1) | next=000 (1)]   
  false_branch:
    000: kCommandBuffer [source       | next=526 (1)] 
        430: kCustomKernel [source       | next=456 (3)] draw grid: [1, 1, 1] threads: [32, 1, 1]  shared_memory: 0 bytes
        431: kCopy [source | sink] kCopy
    481: kWhile         [prev=000 (1) | next=488 (1)]               
condition:
        482: kCustomKernel [source | sink] compare grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
      body:
        000: kCommandBuffer [source | sink] 
            483: kCustomKernel [source | sink] halve grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
  true_branch:
    No thunks.
600: kWhile         [prev=000 (1) | next=700 (1)]               
condition:
    601: kCustomKernel [source | sink] compare grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
  body:
    602: kCustomKernel [source | sink] step grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
700: kCopy [source | sink] kCopy
"""  # noqa: E501, W291

PROGRAM = """
  %copy.1 = bf16[640,2048,256]{2,1,0} copy(%ring), metadata={op_name="a"}
  %copy.2 = bf16[640,4]{1,0} copy(%mask)
  ROOT %sort.1 = (f32[128,4000]{1,0}, s32[128,4000]{1,0}) sort(%param_0, %iota), dimensions={1}, to_apply=%greater
  %sort.2 = f32[128,256000]{1,0} sort(%logits), dimensions={1}, to_apply=%greater
  %cub = (f32[256000]{0}, u8[9]{0}) custom-call(%x), custom_call_target="__cub$DeviceRadixSort", metadata={}
"""


def test_launches_of_the_path_of_greedy_rows() -> None:
    thunks = parse_thunks(THUNKS)
    assert [thunk.kind for thunk in thunks] == ["kCommandBuffer", "kConditional", "kWhile", "kCopy"]
    assert count_launches(thunks) == 3 + 0 + 2 + 1, "the graph, an empty branch, a loop once, and the copy"
    assert count_graph_launches(thunks) == 3
    assert (count(thunks, "kCommandBuffer"), count(thunks, "kWhile")) == (1, 1)


def test_parts_of_branches_and_loops() -> None:
    branches = parse_thunks(THUNKS)[1].parts
    assert {label: [thunk.kind for thunk in part] for label, part in branches.items()} == {
        "false_branch": ["kCommandBuffer", "kWhile"],
        "true_branch": [],
    }
    loop = branches["false_branch"][1].parts
    assert {label: len(part) for label, part in loop.items()} == {"condition": 1, "body": 1}
    assert count_launches(branches["false_branch"]) == 2 + 2


def test_sorts_and_copies() -> None:
    assert count_sorts(PROGRAM, 256_000) == 2
    assert count_sorts(PROGRAM, 4000) == 3
    assert count_copies(PROGRAM, {"bf16[640,2048,256]", "f32[640,2560]"}) == 1


REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'rg_lru' for 'sm_90a'
ptxas info    : Function properties for rg_lru
ptxas         .     16 bytes stack frame, 24 bytes spill stores, 32 bytes spill loads
ptxas info    : Used 113 registers, used 1 barriers
info    : Function properties for 'rg_lru':
info    : used 113 registers, used 1 barriers, 16 stack, 1024 bytes smem, 624 bytes cmem[0], 0 bytes lmem
ptxas info    : Function properties for recurrent_step
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 228 registers, used 1 barriers
"""

LAUNCHES = """\
000: kCommandBuffer [source       | next=003 (1)]
    001: kCustomKernel [source | sink] rg_lru grid: [80, 1, 1] threads: [128, 2, 1] shared_memory: 1024 bytes
    002: kCustomKernel [source | sink] rg_lru grid: [80, 1, 1] threads: [128, 2, 1] shared_memory: 1024 bytes
003: kCustomKernel [source | sink] rg_lru_fusion grid: [1, 1, 1] threads: [32, 1, 1] shared_memory: 0 bytes
"""


def test_the_report_names_registers_and_spills_of_each_kernel() -> None:
    assert parse_report(REPORT) == {"rg_lru": (113, 24), "recurrent_step": (228, 0)}


@pytest.mark.parametrize(
    ("card", "threads", "registers", "shared_bytes", "blocks"),
    [
        ("h100", 256, 228, 13_952, 1),  # registers
        ("h100", 128, 128, 42_240, 4),  # registers: 16 warps
        ("h100", 128, 32, 100_000, 2),  # shared memory
        ("h100", 1024, 16, 0, 2),  # threads
        ("l4", 1024, 16, 0, 1),
        ("h100", 32, 16, 0, 32),  # blocks
        ("l4", 32, 16, 0, 24),
    ],
)
def test_blocks_per_multiprocessor(card: str, threads: int, registers: int, shared_bytes: int, blocks: int) -> None:
    assert blocks_per_multiprocessor(CARDS[card], threads, registers, shared_bytes) == blocks


def test_launches_of_a_kernel_without_its_program_text(tmp_path: Path) -> None:
    (found,) = kernel_resources({"rg_lru": None, "recurrent_step": 8}, parse_thunks(LAUNCHES), tmp_path, CARDS["h100"])
    assert (found.name, found.launches, found.threads, found.shared_bytes) == ("rg_lru", 2, 256, 1024)
    assert found.registers is found.spilled_bytes is found.blocks_per_multiprocessor is None


PTX = """\
.visible .entry other(
)
{
\tadd.s32 \t%r1, %r1, 1;
}
.visible .entry step(
\t.param .u64 .ptr .global step_param_0
)
{
\t.reg .b32 \t%r<9>;
\tmov.b32 \t%r7, 0;
$L__BB0_1:
\t// begin inline asm
\tcp.async.wait_group \t0;
\t// end inline asm
\tadd.s32 \t%r3, %r3, 32;
\tsetp.ne.b32 \t%p1, %r3, 192;
\t@%p1 bra \t$L__BB0_1;
\t@%p3 bra \t$L__BB0_3;
\tcp.async.wait_group \t0;
\tst.global.b32 \t[%rd1], %r7;
$L__BB0_3:
\tret;
}
"""


def test_a_block_executes_its_loops_several_times_and_waits_for_their_copies() -> None:
    """A scheduler issues for two of eight warps."""
    assert block_cycles(PTX, "step", 256, 6) == 2 * (6 * 4 + 5) + 7 * LOAD_CYCLES
    assert block_cycles(PTX, "other", 32, None) == 1


def test_a_loop_of_unknown_passes_has_no_known_cycles() -> None:
    assert block_cycles(PTX, "step", 256, None) is None
