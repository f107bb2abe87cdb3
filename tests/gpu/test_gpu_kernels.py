"""Every Pallas kernel for GPUs compiles to machine code for real cards, without spilling registers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding
from roost.engine.core.mesh import ONE_DEVICE
from roost.engine.worker.gpu_cards import CARDS, open_card, tracing_for
from roost.kernels import Backend
from roost.kernels.window_attention import pallas_gpu

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
        self.devices = open_card(card, ONE_DEVICE)

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
        text: str = lowered.compile(compiler_options=FAIL_ON_SPILLS).as_text()
        return text


@pytest.fixture(scope="module", params=CARDS)
def compiler(request: pytest.FixtureRequest) -> Compiler:
    return Compiler(request.param)


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize(("rows", "steps"), [(1, 2048), (8, 64)])
def test_rg_lru(compiler: Compiler, heads: int, rows: int, steps: int) -> None:
    width = heads * 256
    sequence = (F32, rows, steps, width)
    shapes = (sequence, sequence, sequence, (F32, width), (F32, rows, width), (INT, rows, steps))
    assert compiler.kernels.rg_lru is not None
    assert "triton" in compiler.compile(compiler.kernels.rg_lru, *shapes)


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("rows", [1, 128])
def test_decode_attention(compiler: Compiler, dtype: Any, heads: int, rows: int) -> None:
    token, ring = (dtype, rows, 256), (dtype, rows, 2048, 256)
    shapes = ((dtype, rows, heads, 256), token, token, ring, ring, (INT, rows))
    assert compiler.kernels.decode_attention is not None
    assert "triton" in compiler.compile(compiler.kernels.decode_attention, *shapes)


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_prefill_attention(compiler: Compiler, dtype: Any, heads: int) -> None:
    """A chunk of 2,048 tokens whose blocks fit into the card's shared memory."""
    chunk, ring = (dtype, 1, 2048, 256), (dtype, 1, 2048, 256)
    shapes = ((dtype, 1, 2048, heads, 256), chunk, chunk, ring, ring, (INT, 1, 2048))
    assert compiler.kernels.prefill_attention is not None
    assert "triton" in compiler.compile(compiler.kernels.prefill_attention, *shapes)


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_recurrent_step(compiler: Compiler, dtype: Any, heads: int) -> None:
    """The first 128 of 640 rows of a state, which is updated in place, from the sums of the projections."""
    rows, pool, width = 128, 640, heads * 256
    weights = ((F32, 4, width), (F32, width), (dtype, heads, 256, 512), (F32, heads, 512), (F32, width))
    state = ((dtype, 3, pool, width), (F32, pool, width))
    assert compiler.kernels.recurrent_step is not None
    assert "triton" in compiler.compile(
        compiler.kernels.recurrent_step, (F32, rows, 2 * width), *weights, *state, (INT, rows)
    )


def test_spills_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag with which the tests above compile refuses a kernel with too few threads for its registers."""
    jax.clear_caches()  # the kernel has been traced for the same shapes above
    monkeypatch.setattr(pallas_gpu, "PREFILL_WARPS", 2)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"(?i)spill"):
        test_prefill_attention(Compiler("h100"), BF16, HEADS["2b"])
