"""Checks of kernels: right ones pass, and each way of being wrong is found and named."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from roost.engine.checkpoint.source import ModelSource, open_model
from roost.engine.devices.platform import CPU, StepSizes
from roost.engine.kernel_checks.checks import KernelCheck, checks_on
from roost.engine.kernel_checks.ops import TOKEN_CHECKS, Draw, StepShape, TokenCheck
from roost.engine.types.config import EngineConfig
from roost.kernels import XLA, Backend, Kernel
from roost.kernels.products import argmax_xla
from roost.kernels.recurrent_block.xla import rg_lru
from small_models import TINY_A

SETTINGS = EngineConfig(prefill_chunk=64, dtype="bfloat16")
SOURCE = open_model(str(TINY_A / "hf"))


def right(x: Any, input_gate: Any, recurrence_gate: Any, log_decay: Any, h0: Any, positions: Any) -> Any:
    return rg_lru(x, input_gate, recurrence_gate, log_decay, h0, positions, XLA)


def found_with(
    kernel: Callable[..., Any] | None, prefill_rows: int = 4, source: ModelSource = SOURCE
) -> list[KernelCheck]:
    kernels = () if kernel is None else (Kernel("rg_lru", ("rg_lru",), kernel),)
    platform = replace(CPU, kernels=Backend("planted", kernels), sizes=StepSizes((4,)), prefill_rows=prefill_rows)
    return list(checks_on(platform, source, SETTINGS, lambda name: None))


def test_windows_of_several_key_heads_are_compared() -> None:
    """Vectors that a step writes, and that it changes no others, of each key head; in all steps and precisions."""
    many = ModelSource("many", replace(SOURCE.config, num_key_heads=2), None, ())
    found = found_with(None, prefill_rows=1, source=many)
    assert [(each.kernel, each.step, each.numbers) for each in found] == [
        ("xla", step, numbers)
        for numbers in ("bfloat16", "bfloat16, weights and windows in int8")
        for step in ("decode", "prefill")
    ]
    assert [each for each in found if not each.is_right] == []


@pytest.mark.parametrize("rows", [1, 2, 3, 128])
@pytest.mark.parametrize("tokens", [1, 64])
def test_only_the_second_row_of_a_step_has_to_be_idle(rows: int, tokens: int) -> None:
    """The smallest steps have one row or two, depending on the platform, and nothing to compare without a busy one."""
    float32 = jnp.dtype("float32")
    idle = Draw(SOURCE.config, StepShape(rows, tokens), float32, float32, is_int8=False).positions[:, 0] < 0
    assert idle[:3].tolist() == [False, True, False][:rows]


def test_a_right_kernel_is_right() -> None:
    found = found_with(right)
    assert [(each.kernel, each.shape.rows, each.is_right) for each in found] == [
        ("rg_lru", 1, True),
        ("rg_lru", 4, True),
    ]


def test_wrong_numbers_are_found() -> None:
    def wrong(*inputs: Any) -> Any:
        y, last = right(*inputs)
        return 1.1 * y, last

    (first,) = found_with(wrong, prefill_rows=1)
    assert not first.is_right
    assert first.distance is not None
    assert first.distance.relative > first.allowed > 0
    assert (first.num_unequal, first.is_closed, first.failure) == (0, True, None)


def test_padding_that_leaks_is_found() -> None:
    """NaN of an idle row reaches the others."""

    def wrong(x: Any, *rest: Any) -> Any:
        y, last = right(x, *rest)
        h0, positions = rest[-2:]
        idle = jnp.where(positions[:, :1] < 0, h0, 0)
        return y + 0 * jnp.sum(idle), last

    single, several = found_with(wrong)
    assert single.is_right, "it has no idle row"
    assert not several.is_closed
    assert not several.is_right


def test_a_race_is_found() -> None:
    """Results that change from run to run by less than their error."""
    runs = count()

    def wrong(*inputs: Any) -> Any:
        y, last = right(*inputs)
        noise = jax.pure_callback(lambda: np.float32(1e-6 * next(runs)), jax.ShapeDtypeStruct((), np.float32))
        return y, last + noise

    (first,) = found_with(wrong, prefill_rows=1)
    assert first.num_unequal > 0
    assert first.distance is not None
    assert first.distance.relative <= first.allowed
    assert not first.is_right


def test_a_kernel_that_cannot_run_is_named() -> None:
    def wrong(*inputs: Any) -> Any:
        raise NotImplementedError("no such instruction\nat 0x10")

    (first,) = found_with(wrong, prefill_rows=1)
    assert (first.failure, first.distance, first.is_right) == ("NotImplementedError: no such instruction", None, False)


@pytest.mark.parametrize("check", [check for check in TOKEN_CHECKS if check.kernel == "argmax"])
def test_wrong_tokens_are_found(check: TokenCheck) -> None:
    def wrong(*inputs: Any) -> Any:
        return jnp.roll(argmax_xla(*inputs), 1)

    right, rolled = (
        check.run(SOURCE.config, 16, Backend("planted", (Kernel("argmax", ("argmax",), run),)))
        for run in (argmax_xla, wrong)
    )
    assert right == (0.0, 0)
    assert rolled[0] > check.allowed
