"""Profile of decode steps, and the operations that take longest."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .....engine import Request, SamplingParams, longest_operations, profiled
from ....model_hub import find_model
from ...bench.engine.driver import Driver
from ...bench.engine.loading import load
from ...bench.workload import draw_token_ids
from ..options import ReportOptions
from ..progress import say_step

_NUM_STEPS: Final = 20
_NUM_OPERATIONS: Final = 10
_PROMPT: Final = 16


def run(options: ReportOptions) -> Mapping[str, Any]:
    """Records a profile of steps with every slot in use, and returns the longest operations."""
    settings = options.load()
    source = find_model(settings.model)
    core = load(settings, source, 10**6)
    driver, rng = Driver(core), random.Random(0)
    for place in range(core.stats.slots):
        prompt = tuple(draw_token_ids(_PROMPT, source.config.vocab_size, rng))
        driver.add(Request(f"profile-{place}", prompt, SamplingParams(max_tokens=None, temperature=0.0)))
    while driver.fewest_tokens() < 2:
        driver.step()
    folder = Path(options.folder) / "profile"
    say_step("recording")
    first = len(driver.steps)
    with profiled(folder):
        while len(driver.steps) - first < _NUM_STEPS:
            driver.step()
    steps = driver.steps[first:]
    found = longest_operations(folder, _NUM_OPERATIONS)
    driver.end()
    return {
        "folder": folder.name,  # no path, which may name a person
        "requests": core.stats.slots,
        "steps": len(steps),
        "tokens_per_request": sum(step.rounds for step in steps),
        "steps_seconds": sum(step.seconds for step in steps),
        "busy_seconds": found.busy_seconds,
        "operations": [operation._asdict() for operation in found.operations],
        "problems": [],
    }
