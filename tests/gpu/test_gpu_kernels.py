"""Every Pallas kernel for GPUs compiles to machine code for real cards, without spilling registers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding
from roost.engine.capacity.chips import CARDS, open_chips, tracing_for
from roost.engine.types.config import ONE_DEVICE
from roost.kernels import Backend
from roost.kernels.recurrent_block import RecurrentWeights, recurrent_block
from roost.kernels.recurrent_block.xla import rg_lru
from roost.kernels.window_attention import decode_attention, pallas_gpu, prefill_attention

pytestmark = [
    pytest.mark.gpu_compile,
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning"),
]

F32, BF16, INT = jnp.dtype("float32"), jnp.dtype("bfloat16"), jnp.dtype("int32")
FAIL_ON_SPILLS = {"xla_gpu_fail_ptx_compilation_on_register_spilling": True}
HEADS = {"2b": 10, "9b": 16}


class Compiler:
    """Compiles functions for a card."""

    def __init__(self, card: str) -> None:
        self.card = card
        self.devices = open_chips(card, ONE_DEVICE)

    @property
    def kernels(self) -> Backend:
        return self.devices.platform.kernels

    def compile(self, function: Callable[..., Any], *shapes: tuple[Any, ...]) -> str:
        """Returns the compiled program of a function whose arguments are given as (dtype, *shape)."""
        assert self.devices.device is not None
        place = SingleDeviceSharding(self.devices.device)
        arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=place) for dtype, *shape in shapes]
        with tracing_for(self.card):
            lowered = jax.jit(function).lower(*arguments)
        return lowered.compile(compiler_options=FAIL_ON_SPILLS).as_text()


@pytest.fixture(scope="module", params=CARDS)
def compiler(request: pytest.FixtureRequest) -> Compiler:
    return Compiler(request.param)


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize(("rows", "steps"), [(1, 2048), (8, 64)])
def test_rg_lru(compiler: Compiler, heads: int, rows: int, steps: int) -> None:
    width = heads * 256
    sequence = (F32, rows, steps, width)
    shapes = (sequence, sequence, sequence, (F32, width), (F32, rows, width), (INT, rows, steps))
    assert "triton" in compiler.compile(partial(rg_lru, backend=compiler.kernels), *shapes)


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("rows", [1, 128])
def test_decode_attention(compiler: Compiler, dtype: Any, heads: int, rows: int) -> None:
    token, ring = (dtype, rows, 256), (dtype, rows, 2048, 256)
    shapes = ((dtype, rows, heads, 256), token, token, ring, ring, (INT, rows))

    def attend(q: Any, k: Any, v: Any, ring_k: Any, ring_v: Any, positions: Any) -> Any:
        return decode_attention(q, k, v, (ring_k, ring_v), positions, compiler.kernels)

    assert "triton" in compiler.compile(attend, *shapes)


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_prefill_attention(compiler: Compiler, dtype: Any, heads: int) -> None:
    """A chunk of 2,048 tokens whose blocks fit into the card's shared memory."""
    chunk, ring = (dtype, 1, 2048, 256), (dtype, 1, 2048, 256)
    shapes = ((dtype, 1, 2048, heads, 256), chunk, chunk, ring, ring, (INT, 1, 2048))

    def attend(q: Any, k: Any, v: Any, ring_k: Any, ring_v: Any, positions: Any) -> Any:
        return prefill_attention(q, k, v, (ring_k, ring_v), positions, 64, compiler.kernels)

    assert "triton" in compiler.compile(attend, *shapes)


@pytest.mark.parametrize(("heads", "key_heads"), [(10, 2), (8, 8)])
def test_attention_with_several_key_heads(compiler: Compiler, heads: int, key_heads: int) -> None:
    rows, ring = 16, (BF16, 16, key_heads, 2048, 256)
    token, chunk = (BF16, rows, key_heads, 256), (BF16, rows, key_heads, 128, 256)

    def decode(q: Any, k: Any, v: Any, ring_k: Any, ring_v: Any, positions: Any) -> Any:
        return decode_attention(q, k, v, (ring_k, ring_v), positions, compiler.kernels)

    def prefill(q: Any, k: Any, v: Any, ring_k: Any, ring_v: Any, positions: Any) -> Any:
        return prefill_attention(q, k, v, (ring_k, ring_v), positions, 64, compiler.kernels)

    one, many = (BF16, rows, heads, 256), (BF16, rows, 128, heads, 256)
    assert "triton" in compiler.compile(decode, one, token, token, ring, ring, (INT, rows))
    assert "triton" in compiler.compile(prefill, many, chunk, chunk, ring, ring, (INT, rows, 128))


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_recurrent_step(compiler: Compiler, dtype: Any, heads: int) -> None:
    """The first 128 of 640 rows of a state, which is updated in place, from the sums of the projections."""
    rows, pool, width = 128, 640, heads * 256
    weights = ((F32, 4, width), (F32, width), (dtype, heads, 256, 512), (F32, heads, 512), (F32, width))
    state = ((dtype, 3, pool, width), (F32, pool, width))

    def step(xy: Any, *arrays: Any) -> Any:
        *weights, conv, h, positions = arrays
        return recurrent_block(
            lambda dtype: xy, RecurrentWeights(*weights), conv, h, positions, 64, 1, compiler.kernels
        )

    assert "triton" in compiler.compile(step, (F32, rows, 1, 2 * width), *weights, *state, (INT, rows, 1))


def test_spills_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag with which the tests above compile refuses a kernel with too few threads for its registers."""
    jax.clear_caches()  # the kernel has been traced for the same shapes above
    monkeypatch.setattr(pallas_gpu, "PREFILL_WARPS", 2)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"(?i)spill"):
        test_prefill_attention(Compiler("h100"), BF16, HEADS["2b"])
