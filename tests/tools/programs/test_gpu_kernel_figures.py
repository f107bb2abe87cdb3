"""What a kernel takes is read from the linker's report, and how many blocks of it fit follows from that."""

from pathlib import Path

import pytest
from gpu_kernels import blocks_per_multiprocessor, kernel_resources, parse_report
from gpu_thunks import parse_thunks
from roost.engine.capacity.chips import CARDS

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

THUNKS = """\
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
    (found,) = kernel_resources(("rg_lru", "recurrent_step"), parse_thunks(THUNKS), tmp_path, CARDS["h100"])
    assert (found.name, found.launches, found.threads, found.shared_bytes) == ("rg_lru", 2, 256, 1024)
    assert found.registers is found.spilled_bytes is found.blocks_per_multiprocessor is None
