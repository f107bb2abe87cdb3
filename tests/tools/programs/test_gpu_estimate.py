"""The estimate of a program for a GPU is a sum over its launches, each the longest of three times."""

import pytest
from gpu_dump import KernelResources, parse_thunks
from gpu_estimate import BANDWIDTH_SHARE, LATENCY_SECONDS, Part, Sizes, estimate, names_of_thunks
from roost.engine.capacity.chips import CARDS
from roost.engine.capacity.roofline import DEVICES
from tpu_hlo import parse_module

CARD, PEAK = CARDS["h100"], DEVICES["h100"].peak
SIZES = Sizes(rows=128, busy=128, slots=1280, window=2048)

PROGRAM = """\
HloModule jit_run

%body (x: bf16[128,2560]) -> bf16[128,2560] {
  %x = bf16[128,2560]{1,0} parameter(0)
  ROOT %copy.3 = bf16[128,2560]{1,0} copy(%x)
}

%condition (x: bf16[128,2560]) -> pred[] {
  %x.1 = bf16[128,2560]{1,0} parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (a: bf16[128,2560], w: bf16[7680,2560], k: bf16[1280,2048,256]) -> bf16[128,2560] {
  %a = bf16[128,2560]{1,0} parameter(0)
  %w = bf16[7680,2560]{1,0} parameter(1)
  %k = bf16[1280,2048,256]{2,1,0} parameter(2)
  %q = bf16[128,10,256]{2,1,0} bitcast(%a)
  %gemm.1 = (bf16[128,7680]{1,0}, s8[4194304]{0}) custom-call(%a, %w), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  %call.1 = f32[128,10,256]{2,1,0} custom-call(%q, %k, %k), custom_call_target="__gpu$xla.gpu.triton", \
metadata={op_name="jit(run)/window_attention_decode/pallas_call" scheduling_name="call.1"}
  ROOT %while.1 = bf16[128,2560]{1,0} while(%a), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"8"}}
}
"""

THUNKS = """\
000: kCommandBuffer [source       | next=539 (1)]
    001: kCublasLtMatmul [prev=004 (1)  | next=005 (1) ] kCublasLtMatmul
    002: kCustomKernel [source | sink] window_attention_decode grid: [128, 2, 1] threads: [128, 1, 1] \
shared_memory: 42240 bytes
003: kWhile         [prev=000 (1) | sink        ]
condition:
    No thunks.
  body:
    004: kCopy [source | sink] kCopy
"""

METADATA = "".join(
    f'thunk_metadata {{\n  thunk_info {{\n    profile_annotation: "{name}"\n    thunk_id: {number}\n  }}\n}}\n'
    for number, name in ((1, "gemm.1"), (2, "call.1"), (3, "while.1"), (4, "copy.3"))
)


def parts(blocks: int, cycles: int | None = None, sizes: Sizes = SIZES) -> dict[str, Part]:
    """Returns the parts of the program, of whose kernel a multiprocessor holds that many blocks."""
    kernel = KernelResources("window_attention_decode", 1, 128, 42_240, 153, 0, blocks, cycles)
    names = names_of_thunks(METADATA)
    assert PEAK is not None
    found = estimate(parse_module(PROGRAM), parse_thunks(THUNKS), names, (kernel,), CARD, PEAK, sizes)
    return {part.name: part for part in found}


def test_a_product_takes_its_bytes_or_its_operations() -> None:
    assert PEAK is not None
    product = parts(3)["products"]
    assert product.tensor_seconds == pytest.approx(2 * 128 * 7680 * 2560 / PEAK.flops_per_second)
    moved = 2 * (128 * 2560 + 7680 * 2560 + 128 * 7680)  # the work space is not moved
    assert product.memory_seconds == pytest.approx(moved / (BANDWIDTH_SHARE * PEAK.bytes_per_second))
    assert product.seconds == product.memory_seconds > product.tensor_seconds


def test_attention_reads_the_rows_of_its_step() -> None:
    assert PEAK is not None
    attention = parts(3)["window_attention_decode"]
    rings, queries = 2 * 128 * 2048 * 256 * 2, 128 * 10 * 256
    moved = rings + 2 * queries + 4 * queries
    assert attention.memory_seconds == pytest.approx(moved / (BANDWIDTH_SHARE * PEAK.bytes_per_second))
    assert attention.tensor_seconds == pytest.approx(4 * queries * 2048 / PEAK.flops_per_second)


def test_attention_skips_idle_rows() -> None:
    whole, half = (parts(3, sizes=SIZES._replace(busy=busy))["window_attention_decode"] for busy in (128, 64))
    assert half.tensor_seconds == whole.tensor_seconds / 2
    assert half.memory_seconds == pytest.approx(whole.memory_seconds / 2, rel=0.01), "not queries and outputs"


@pytest.mark.parametrize("cycles", [None, 39_706])
def test_a_launch_of_more_blocks_than_the_card_holds_takes_waves(cycles: int | None) -> None:
    one, two = (parts(blocks, cycles)["window_attention_decode"].latency_seconds for blocks in (2, 1))
    wave = LATENCY_SECONDS + (cycles or 0) / (1e9 * CARD.clock_ghz)
    assert (one, two) == (wave, 2 * wave), "256 blocks on 132 multiprocessors"


def test_launches_of_a_loop_count_for_each_pass() -> None:
    others = parts(3)["others"]
    assert others.launches == 8
    assert others.seconds == pytest.approx(8 * LATENCY_SECONDS)
