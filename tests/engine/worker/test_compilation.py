"""Memory of compiled programs, and the compiler's refusals."""

from dataclasses import replace

import jax
import pytest
from roost.engine.worker.compilation import (
    KernelRefusedError,
    MemoryDemand,
    OutOfMemoryError,
    ProgramMemory,
    compile_lowered,
    demands,
    parse_overflow,
    parse_refused_kernel,
)


def test_memory_counts_a_donated_output_once() -> None:
    memory = ProgramMemory(argument_bytes=1000, output_bytes=610, alias_bytes=600, temp_bytes=50, code_bytes=7)
    assert memory.new_bytes == 10
    assert memory.hbm_bytes == 1067
    assert replace(memory, allocated_bytes=1030).hbm_bytes == 1037, "temporaries that share memory count once"


@pytest.mark.parametrize(
    ("message", "used", "limit"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 16.50G of 15.75G hbm. Exceeded", 16.5, 15.75),
        ("temporaries (256.00G) exceeds available HBM (31.25G). HLO module: jit__lambda.", 256, 31.25),
    ],
)
def test_a_refusal_names_its_bytes(message: str, used: float, limit: float) -> None:
    overflow = parse_overflow(message)
    assert overflow is not None
    assert (overflow.used_bytes, overflow.limit_bytes) == (used * 2**30, limit * 2**30)


@pytest.mark.parametrize("message", ["INTERNAL: Mosaic failed to compile TPU kernel", "Used 20.9M of 16.0M vmem"])
def test_other_refusals_are_none_of_memory(message: str) -> None:
    assert parse_overflow(message) is None


VMEM = "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20.88M of 16.00M vmem.\nMore."


SHARED = "RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 107520, available: 101376, context: []"


@pytest.mark.parametrize(
    ("message", "error"),
    [(VMEM, KernelRefusedError), (SHARED, KernelRefusedError), ("Used 2G of 1G hbm", OutOfMemoryError)],
)
def test_a_refused_compilation_raises_its_reason(message: str, error: type[Exception]) -> None:
    class Lowered:
        def compile(self, compiler_options: dict[str, str]) -> None:
            raise jax.errors.JaxRuntimeError(message)

    with pytest.raises(error) as raised:
        compile_lowered(Lowered(), {})
    assert "\n" not in str(raised.value)


def test_a_refused_kernel_is_named() -> None:
    more = '\n\n  1. Size: 7.81M\n     Operator: op_name="jit(decode_step)/cond/branch_1_fun/sample/pallas_call"\n'
    named, unnamed = parse_refused_kernel(VMEM + more), parse_refused_kernel("INTERNAL: Mosaic failed to compile")
    assert named is not None
    assert named.reasons == {"sample": VMEM.splitlines()[0]}
    assert unnamed is not None
    assert unnamed.reasons == {"": "INTERNAL: Mosaic failed to compile"}


def test_other_failures_of_the_compiler_keep_their_trace() -> None:
    class Lowered:
        def compile(self, compiler_options: dict[str, str]) -> None:
            raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        compile_lowered(Lowered(), {})


def program(arguments: int, outputs: int, temporaries: int, code: int) -> ProgramMemory:
    return ProgramMemory(arguments, outputs, 0, temporaries, code)


def test_a_program_needs_its_own_memory_and_what_stays_beside_it() -> None:
    """Two earlier steps' outputs and all programs' code are there whichever program runs; so are weights and slots."""
    programs = {"decode": program(1000, 5, 300, 20), "score": program(100, 10, 50, 7)}
    beside = 1000 + 2 * 10 + 27
    assert demands(programs, 1352) == {
        "decode": MemoryDemand(beside + 305, True),
        "score": MemoryDemand(beside + 60, True),
    }
    assert [demand.fits for demand in demands(programs, 1351).values()] == [False, True]
    programs["decode"] = replace(programs["decode"], idle_bytes=1)
    assert demands(programs, 1352)["decode"] == MemoryDemand(beside + 306, False)


def test_a_refused_program_needs_what_the_compiler_says() -> None:
    programs: dict[str, ProgramMemory | OutOfMemoryError] = {
        "decode": OutOfMemoryError(5000, 4000),
        "score": program(100, 10, 50, 7),
    }
    assert demands(programs, 4000)["decode"] == MemoryDemand(5000 + 20 + 7, False)
