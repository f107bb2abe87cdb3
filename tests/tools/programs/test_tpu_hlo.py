"""Instructions of compiled TPU programs cost what they compute and what they move to and from main memory."""

import pytest
from tpu_hlo import Cost, Module, Rates, cost_of, executed, parse_module

PROGRAM = """
HloModule jit_step, is_scheduled=true

%update (p0: f32[64,256], p1: s32[], p2: f32[1,256]) -> f32[64,256] {
  %p0 = f32[64,256]{1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %p2 = f32[1,256]{1,0:T(1,128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %dus = f32[64,256]{1,0:T(8,128)} dynamic-update-slice(%p0, %p2, %p1, %zero)
}

%rows (p0.1: f32[64,256], p1.1: s32[]) -> f32[2,256] {
  %p0.1 = f32[64,256]{1,0:T(8,128)} parameter(0)
  %p1.1 = s32[]{:T(128)} parameter(1)
  %zero.1 = s32[]{:T(128)} constant(0)
  ROOT %slice = f32[2,256]{1,0:T(8,128)} dynamic-slice(%p0.1, %p1.1, %zero.1), dynamic_slice_sizes={2,256}
}

%retiling (r: f32[64,256]) -> f32[64,256] {
  %r = f32[64,256]{1,0:T(8,128)} parameter(0)
  ROOT %copied = f32[64,256]{1,0:T(4,128)} copy(%r)
}

%retiled_rows (p0.2: f32[64,256], p1.2: s32[]) -> f32[2,256] {
  %p0.2 = f32[64,256]{1,0:T(8,128)} parameter(0)
  %p1.2 = s32[]{:T(128)} parameter(1)
  %zero.2 = s32[]{:T(128)} constant(0)
  %view = f32[64,256]{1,0:T(4,128)} fusion(%p0.2), kind=kLoop, output_to_operand_aliasing={{}: (0, {})}, calls=%retiling
  ROOT %slice.1 = f32[2,256]{1,0:T(4,128)} dynamic-slice(%view, %p1.2, %zero.2), dynamic_slice_sizes={2,256}
}

%wrapped (w0: bf16[512,256]) -> bf16[512,256] {
  %w0 = bf16[512,256]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %cast = bf16[512,256]{1,0:T(8,128)(2,1)} bitcast(%w0)
}

%dense (x: bf16[16,256], w: bf16[512,256]) -> bf16[16,512] {
  %x = bf16[16,256]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %w = bf16[512,256]{1,0:T(8,128)(2,1)} parameter(1)
  %inner = bf16[512,256]{1,0:T(8,128)(2,1)} fusion(%w), kind=kLoop, calls=%wrapped
  %conv = f32[16,512]{1,0:T(8,128)} convolution(%x, %inner), dim_labels=bf_oi->bf
  ROOT %rounded = bf16[16,512]{1,0:T(8,128)(2,1)S(1)} convert(%conv)
}

%greedy (t: (f32[64,256])) -> f32[64,256] {
  %t = (f32[64,256]{1,0:T(8,128)}) parameter(0)
  ROOT %same = f32[64,256]{1,0:T(8,128)} get-tuple-element(%t), index=0
}

%sampled (t.1: (f32[64,256])) -> f32[64,256] {
  %t.1 = (f32[64,256]{1,0:T(8,128)}) parameter(0)
  %logits = f32[64,256]{1,0:T(8,128)} get-tuple-element(%t.1), index=0
  %flag = s32[]{:T(128)} constant(0)
  %tuple.1 = (f32[64,256]{1,0:T(8,128)}) tuple(%logits)
  %penalized = f32[64,256]{1,0:T(8,128)} conditional(%flag, %tuple.1, %tuple.1), \
branch_computations={%greedy, %costly}
  ROOT %doubled = f32[64,256]{1,0:T(8,128)} add(%penalized, %penalized)
}

%costly (t.2: (f32[64,256])) -> f32[64,256] {
  %t.2 = (f32[64,256]{1,0:T(8,128)}) parameter(0)
  %part = f32[64,256]{1,0:T(8,128)} get-tuple-element(%t.2), index=0
  ROOT %sorted = f32[64,256]{1,0:T(8,128)} sort(%part), dimensions={1}, to_apply=%greater
}

%body (b: f32[64,256]) -> f32[64,256] {
  %b = f32[64,256]{1,0:T(8,128)} parameter(0)
  ROOT %negated = f32[64,256]{1,0:T(8,128)} negate(%b)
}

%condition (c: f32[64,256]) -> pred[] {
  %c = f32[64,256]{1,0:T(8,128)} parameter(0)
  ROOT %yes = pred[]{:T(512)} constant(true)
}

ENTRY %main (pool: f32[64,256], at: s32[], row: f32[1,256], table: bf16[512,256], q: s8[16,256], \
k: s8[512,256]) -> f32[64,256] {
  %pool = f32[64,256]{1,0:T(8,128)} parameter(0), sharding={replicated}
  %at = s32[]{:T(128)} parameter(1)
  %row = f32[1,256]{1,0:T(1,128)S(1)} parameter(2)
  %table = bf16[512,256]{1,0:T(8,128)(2,1)} parameter(3)
  %q = s8[16,256]{1,0:T(8,128)(4,1)} parameter(4)
  %k = s8[512,256]{1,0:T(8,128)(4,1)} parameter(5)
  %some = f32[2,256]{1,0:T(8,128)S(1)} fusion(%pool, %at), kind=kLoop, calls=%rows
  %retiled = f32[2,256]{1,0:T(4,128)S(1)} fusion(%pool, %at), kind=kLoop, calls=%retiled_rows
  %copy-start = (bf16[512,256]{1,0:T(8,128)(2,1)S(1)}, bf16[512,256]{1,0:T(8,128)(2,1)}, \
u32[]{:S(2)}) copy-start(%table)
  %copy-done = bf16[512,256]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %half = ((bf16[512,256]{1,0}), bf16[256,256]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) \
slice-start(%table), slice={[0:256]}
  %x.1 = bf16[16,256]{1,0:T(8,128)(2,1)S(1)} convert(%some)
  %out = bf16[16,512]{1,0:T(8,128)(2,1)S(1)} fusion(%x.1, %table), kind=kOutput, calls=%dense
  %product = s32[16,512]{1,0:T(8,128)} dot(%q, %k), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %kernel = f32[16,512]{1,0:T(8,128)S(1)} custom-call(%out, /*index=1*/%table, %out), \
custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"cost_estimate":{"flops":"1000","transcendentals":"5","bytes_accessed":"600000"}}}
  %joined = bf16[512,256]{1,0:T(8,128)(2,1)S(1)} custom-call(%copy-done), custom_call_target="ConcatBitcast"
  %loop = f32[64,256]{1,0:T(8,128)} while(%pool), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %arguments = (f32[64,256]{1,0:T(8,128)}) tuple(%loop)
  %choice = f32[64,256]{1,0:T(8,128)} conditional(%at, %arguments, %arguments), branch_computations={%greedy, %sampled}
  ROOT %written = f32[64,256]{1,0:T(8,128)} fusion(%choice, %at, %row), kind=kLoop, calls=%update
}
"""
RATES = Rates(1e12, 2e12, 1e9, 1e9)
ROW, POOL, TABLE = 256 * 4, 64 * 256 * 4, 512 * 256 * 2


@pytest.fixture(scope="module")
def module() -> Module:
    return parse_module(PROGRAM)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pool", Cost(0, 0, 0)),
        ("some", Cost(0, 0, 2 * ROW)),  # and an index
        ("retiled", Cost(0, 0, 2 * ROW)),  # its copy of the pool is the same memory
        ("copy-start", Cost(0, 0, TABLE)),
        ("copy-done", Cost(0, 0, 0)),
        ("half", Cost(0, 0, TABLE // 2)),
        ("out", Cost(2 * 16 * 512 * 256, 0, TABLE)),
        ("product", Cost(0, 2 * 16 * 512 * 256, (16 + 512) * 256 + 16 * 512 * 4)),
        ("kernel", Cost(1000, 0, 600_000 - 16 * 512 * 2 - 16 * 512 * 4)),  # its argument counts once
        ("joined", Cost(0, 0, 0)),
        ("written", Cost(0, 0, ROW)),
    ],
)
def test_cost(module: Module, name: str, expected: Cost) -> None:
    """What lies on the chip costs nothing; of sliced and updated arrays counts the part."""
    entry = module.computations[module.entry]
    cost = cost_of(module, entry, entry[name])
    assert (cost.flops, cost.int8_ops) == (expected.flops, expected.int8_ops)
    assert 0 <= cost.hbm_bytes - expected.hbm_bytes <= 4, "an index at most"


def names(module: Module, branch: int) -> dict[str, int]:
    return {instruction.name: times for _, instruction, times in executed(module, branch, RATES)}


def test_only_the_branch_that_runs_counts(module: Module) -> None:
    greedy, sampled = (names(module, branch) for branch in (0, 1))
    assert "doubled" not in greedy
    assert sampled["doubled"] == 1
    assert "sorted" not in sampled, "conditionals within a branch take the cheaper one"


def test_a_loop_counts_as_often_as_it_runs(module: Module) -> None:
    assert names(module, 0)["negated"] == 3


def test_time_is_the_longer_of_products_and_bytes() -> None:
    assert RATES.seconds(Cost(3e12, 0, 1)) == 3
    assert RATES.seconds(Cost(0, 3e12, 1)) == 1.5
    assert RATES.seconds(Cost(1e12, 0, 2_000_000_000)) == 2
