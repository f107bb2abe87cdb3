"""Compiles the steps of the kernels' checks for a chip that this machine need not have."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from ..capacity.verification import open_target
from ..checkpoint.source import ModelSource
from ..types.config import ONE_DEVICE, EngineConfig
from ..worker.served import Devices, open_weights
from .checks import MAX_ROWS, checked_model, first_line, kernels_of, shapes
from .sampling import TOKEN_CHECKS
from .steps import Step, StepShape, draw_inputs


def compile_kernel_checks(source: ModelSource, settings: EngineConfig, chip: str) -> Iterator[tuple[str, str | None]]:
    """Yields each kernel and step, and why it does not compile; None if it does.

    Call it before anything else asks JAX for devices.

    Args:
      source: Model whose widths and dtype the checks have.
      chip: See `verify_plan`.

    Raises:
      ConfigError: The chip is unknown, or its compiler is missing.
    """
    devices, _, tracing = open_target(chip, ONE_DEVICE)
    with tracing:
        for is_int8 in (False, True):
            model, config = checked_model(source, settings, is_int8=is_int8)
            for kernel in kernels_of(devices.platform, is_int8=is_int8):
                for shape in shapes(kernel, settings, devices.platform):
                    name = f"{kernel}, {shape.rows} x {shape.tokens}{', int8' if is_int8 else ''}"
                    yield name, _compile_step(model, config, devices, kernel, shape)
        for check in TOKEN_CHECKS:
            if check.kernel in devices.platform.kernels.names:
                inputs = jax.eval_shape(partial(check.inputs, source.config, MAX_ROWS))
                kernels = devices.platform.kernels.only(check.kernel)
                name = f"{check.kernel}, {MAX_ROWS} x 1, {check.numbers}"
                yield name, _failure(partial(check.tokens, kernels), devices, *inputs)


def _compile_step(
    source: ModelSource, config: EngineConfig, devices: Devices, kernel: str, shape: StepShape
) -> str | None:
    platform = replace(devices.platform, kernels=devices.platform.kernels.only(kernel))
    with open_weights(source, config, Devices(platform)) as weights:
        step = Step(weights.served.graph, platform, source.config.window)
        inputs = jax.eval_shape(partial(draw_inputs, source.config, shape, jnp.dtype(config.dtype)))
        return _failure(step.run, devices, weights.served.params, inputs)


def _failure(function: Callable[..., Any], devices: Devices, *arguments: Any) -> str | None:
    """Returns why a function of arrays does not compile; None if it does."""
    place = SingleDeviceSharding(devices.device)
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments)
    try:
        jax.jit(function).lower(*placed).compile(compiler_options=dict(devices.platform.compile_options))
    except Exception as error:  # whatever the compiler raises is the finding
        return first_line(error)
    return None
