"""`roost` with a fault: run as a program, with the fault's name in front of the usual arguments.

The faults are in what stands for the device, behind all that is to be tested: HTTP, threads and scheduling are real.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from roost.engine import ModelRunner, builder
from roost.engine.worker.pending import PendingDecode
from roost.server.__main__ import main

CALLS_BEFORE = 3
"""What is to fail works so often first, so that streams are under way."""


def fail(*_: Any) -> Any:
    raise RuntimeError("the device caught fire")


def hang(*_: Any) -> Any:
    time.sleep(3600)


def later(works: Callable[..., Any], then: Callable[..., Any]) -> Callable[..., Any]:
    """Works some times, then does something else."""
    num_calls = 0

    def call(*arguments: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        return (works if num_calls <= CALLS_BEFORE else then)(*arguments)

    return call


def spoil(runner: ModelRunner) -> None:
    """No parameter is a number any more."""
    arrays = runner.executor.arrays
    arrays.params = jax.tree.map(
        lambda leaf: jax.device_put(np.full_like(leaf, np.nan)) if leaf.dtype.kind == "f" else leaf, arrays.params
    )


def after_loading(change: Callable[[ModelRunner], None]) -> None:
    """Changes a runner that is ready."""
    load = builder.load_runner

    def load_and_change(*arguments: Any) -> ModelRunner:
        runner = load(*arguments)
        change(runner)
        return runner

    builder.load_runner = load_and_change


def break_program(kind: str, then: Callable[..., Any]) -> Callable[[ModelRunner], None]:
    def change(runner: ModelRunner) -> None:
        compiled = runner.executor.compiled
        for label, program in compiled.items():
            if label.startswith(kind):
                compiled[label] = later(program, then)

    return change


def jump_clock() -> None:
    """The time of day goes to and fro by ten years, at each look."""
    real, direction = time.time, 1

    def jumping() -> float:
        nonlocal direction
        direction = -direction
        return real() + direction * 3e8

    time.time = jumping


def install(fault: str) -> None:
    if fault == "clock":
        jump_clock()
    elif fault == "numbers":
        after_loading(spoil)
    elif fault == "stuck":
        after_loading(break_program("decode", hang))
    elif fault == "read":
        PendingDecode.wait = later(PendingDecode.wait, fail)  # type: ignore[method-assign]
    else:
        after_loading(break_program(fault, fail))


if __name__ == "__main__":
    install(sys.argv.pop(1))
    main()
