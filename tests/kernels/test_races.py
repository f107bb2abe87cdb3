"""TPU kernels in the interpreter that knows copies, semaphores and memory, and raises an error where two accesses race.

On-chip memory and results begin as NaN. Copies happen at once ("eager") or as late as they may ("on_wait").
"""

from collections.abc import Callable
from functools import partial
from itertools import count, product
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreted import interpreted_copies
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from race_cases import COPYING, LONG, STREAMED
from roost.kernels.backends import TPU
from sweeps import swept

NOTICED = {"eager": (jax.errors.JaxRuntimeError, "RACE DETECTED"), "on_wait": (AssertionError, "[Nn]ot equal")}
"""Errors by which the tests notice a missing wait, by the interpreter's mode."""

MODES = tuple(NOTICED)

WAITS_FOR_BLOCK, WAITS_FOR_PREVIOUS, WAITS_FOR_LAST = [4, 5], [6, 7], [10, 11]
"""Numbers of the copies that `decode_attention_tpu` makes in order to wait for them."""


def run_in(mode: str, kernel: Callable[..., Any], *arguments: Any) -> Any:
    """Returns a kernel's results. The interpreter draws each copy's place in its clocks, and misses races of equals."""
    np.random.seed(0)
    options = {"dma_execution_mode": mode, "uninitialized_memory": "nan", "vector_clock_size": 64}
    try:
        return jax.tree.map(np.asarray, interpreted_copies(kernel, detect_races=True, **options)(*arguments))
    finally:
        pltpu.reset_tpu_interpret_mode_state()


class Traced(Exception):
    """Ends a case when its kernels' names and grids are known."""


def raise_grids(kernel: Callable[..., Any], *arguments: Any) -> Any:
    """Traces a kernel, and raises its grid by its name."""
    calls = (e.params for e in jax.make_jaxpr(kernel)(*arguments).jaxpr.eqns if e.primitive.name == "pallas_call")
    raise Traced({call["name"]: call["grid_mapping"].grid for call in calls})


def test_every_kernel_has_a_case_of_several_blocks_along_each_axis() -> None:
    """What a kernel keeps between blocks is wrong in the second one first."""
    grids = []
    for case in (COPYING | STREAMED | LONG).values():
        with pytest.raises(Traced) as found:
            case(raise_grids)
        grids += found.value.args[0].items()
    assert {name for name, _ in grids} == {*TPU.names}
    assert [(name, grid) for name, grid in grids if min(grid) < 2] == []


def test_a_copy_that_is_never_awaited_is_noticed() -> None:
    def kernel(x: Any, out: Any, memory: Any, semaphore: Any) -> None:
        pltpu.make_async_copy(x, memory, semaphore).start()
        out[...] = jnp.zeros_like(out)

    x, scratch = jnp.zeros((8, 128)), [pltpu.VMEM((8, 128), jnp.float32), pltpu.SemaphoreType.DMA(())]
    call = partial(pl.pallas_call, kernel, x, in_specs=[pl.BlockSpec(memory_space=pl.ANY)], scratch_shapes=scratch)
    with pytest.raises(AssertionError, match="Semaphore"):
        run_in("eager", lambda x, interpret: call(interpret=interpret)(x), x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", COPYING)
def test_kernels_wait_for_their_copies(name: str, mode: str) -> None:
    COPYING[name](partial(run_in, mode))


@pytest.mark.parametrize(
    ("name", "mode"),
    [*((name, "on_wait") for name in STREAMED), *swept(*((name, "eager") for name in STREAMED), *product(LONG, MODES))],
)
def test_blocks_do_not_race(name: str, mode: str) -> None:
    (STREAMED | LONG)[name](partial(run_in, mode))


@pytest.mark.parametrize(
    ("name", "mode", "dropped"),
    [
        ("decode", "eager", WAITS_FOR_BLOCK),
        ("decode", "eager", WAITS_FOR_PREVIOUS),
        ("decode", "eager", WAITS_FOR_LAST),
        *swept(
            ("decode", "on_wait", WAITS_FOR_BLOCK),
            ("decode", "on_wait", WAITS_FOR_PREVIOUS),
            ("decode", "on_wait", WAITS_FOR_LAST),
            *product(["decode"], MODES, [[4], [5], [6], [7], [10], [11]]),
            *product(["decode_int8"], MODES, [[n] for n in (*range(8, 16), *range(20, 24))]),
        ),
    ],
)
def test_a_missing_wait_is_noticed(name: str, mode: str, dropped: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that happens at once races with what comes next. One that is late misses the end, or copies a later row.

    A kernel makes each copy again to wait for it. First come the copies of the first block and of a next one, and the
    waits for a block; then the waits for the previous row's tiles, copies of a row's, and waits for the last row's.
    """
    numbers, make = count(), pltpu.make_async_copy

    def make_or_drop(*arguments: Any) -> Any:
        return SimpleNamespace(wait=lambda: None) if next(numbers) in dropped else make(*arguments)

    monkeypatch.setattr(pltpu, "make_async_copy", make_or_drop)
    error, message = NOTICED[mode]
    with pytest.raises(error, match=message):
        COPYING[name](partial(run_in, mode))
    assert next(numbers) > max(dropped)
