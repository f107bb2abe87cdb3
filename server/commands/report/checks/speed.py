"""Speed of decode and prefill, compared with the roofline, and the memory that they take."""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, Final

from .....engine import (
    CPU,
    EngineCore,
    ModelSource,
    Request,
    Roofline,
    SamplingParams,
    compute_roofline,
    device_facts,
    device_limit_bytes,
    device_named,
    device_peak_bytes,
    find_device,
)
from ....model_hub import find_model
from ....settings import Settings
from ...bench.engine.driver import Driver, MeasuredStep
from ...bench.engine.loading import load, model_facts
from ...bench.environment import resident_bytes
from ...bench.workload import draw_token_ids
from ..options import ReportOptions
from ..progress import say_step

_COUNTS: Final = (1, 8, 64, 256)
"""Numbers of requests that decode together. All slots are measured, too."""

_QUICK_COUNTS: Final = (1, 8)

_PROMPTS: Final = (512, 2048)
_SHORT_PROMPT: Final = 16
_MEASURE_S: Final = 3.0
_MAX_STEPS: Final = 200
_NUM_PREFILLS: Final = 3
_MAX_QUEUE: Final = 10**6

_SAMPLED: Final = SamplingParams(temperature=0.8, top_p=0.95, seed=0)
_GREEDY: Final = SamplingParams(temperature=0.0)


def run(options: ReportOptions) -> Mapping[str, Any]:
    """Returns the measured rows, the memory, and the duration of the start."""
    settings = options.load()
    source, began = find_model(settings.model), time.perf_counter()
    core = load(settings, source, _MAX_QUEUE)
    start_s, slots = time.perf_counter() - began, core.stats.slots
    roofline = _roofline(source, settings)
    counts = _QUICK_COUNTS if options.is_quick else _COUNTS
    counts = tuple(
        dict.fromkeys([*(count for count in counts if count < slots), *(() if options.is_quick else (slots,))])
    )
    decode = [_decode_row(core, source, roofline, *each) for each in _loads(counts)]
    prefill = [] if options.is_quick else [_prefill_row(core, source, roofline, length) for length in _PROMPTS]
    memory = _memory(core, roofline)
    return {
        "model": model_facts(source, settings, core),
        "start_seconds": start_s,
        "compiles_since_ready": core.stats.compiles_since_ready,
        "decode": decode,
        "prefill": prefill,
        "memory": memory,
        "problems": [*_compiled_late(core), *memory["problems"]],
    }


def _loads(counts: Sequence[int]) -> Iterator[tuple[int, bool]]:
    for count in counts:
        yield from ((count, False), (count, True))


def _roofline(source: ModelSource, settings: Settings) -> Roofline | None:
    """Returns the plan for this device; None if its data sheet is unknown."""
    name = device_named(device_facts().kind)
    if name is None and device_facts().platform != "cpu":
        return None
    dtype = source.config.dtype if settings.dtype == "auto" else settings.dtype
    quantize, config = settings.quantize or source.config.quantize, source.with_kv_dtype(settings.kv_dtype).config
    return compute_roofline(config, find_device(name or CPU), 4 if dtype == "float32" else 2, quantize=quantize)


def _decode_row(
    core: EngineCore, source: ModelSource, roofline: Roofline | None, count: int, is_sampled: bool
) -> Mapping[str, Any]:
    """Lets requests decode together, and returns medians over steps."""
    say_step(f"decode, {count} {'sampled' if is_sampled else 'greedy'}")
    driver, rng = Driver(core), random.Random(count)
    for place in range(count):
        driver.add(_request(f"decode-{count}-{is_sampled}-{place}", source, rng, _SHORT_PROMPT, None, is_sampled))
    while driver.fewest_tokens() < 2:
        driver.step()
    first, until = len(driver.steps), driver.clock() + _MEASURE_S
    while driver.clock() < until and len(driver.steps) - first < _MAX_STEPS:
        driver.step()
    steps = [step for step in driver.steps[first:] if step.is_decode and step.rows == count]
    length = driver.generated_tokens // count + _SHORT_PROMPT
    driver.end()
    return {
        "requests": count,
        "is_sampled": is_sampled,
        **_rates(steps),
        **_bounds(roofline, count, core.stats.slots, length),
    }


def _rates(steps: Sequence[MeasuredStep]) -> Mapping[str, Any]:
    seconds = sum(step.seconds for step in steps)
    return {
        "num_steps": len(steps),
        "step_ms": 1e3 * median(step.seconds / step.rounds for step in steps) if steps else None,
        "host_ms": 1e3 * median(step.host_seconds / step.rounds for step in steps) if steps else None,
        "tokens_per_s": sum(step.tokens for step in steps) / seconds if seconds else None,
    }


def _bounds(roofline: Roofline | None, count: int, slots: int, length: int) -> Mapping[str, Any]:
    """Returns the plan's step with full windows, and the roofline of what ran, in milliseconds."""
    if roofline is None or roofline.device.peak is None:
        return {"plan_ms": None, "roofline_ms": None}
    tokens = count * min(length, roofline.config.window)
    return {
        "plan_ms": 1e3 * roofline.decode_seconds(min(count, slots)),
        "roofline_ms": 1e3 * roofline.decode_seconds(count, tokens),
    }


def _prefill_row(core: EngineCore, source: ModelSource, roofline: Roofline | None, length: int) -> Mapping[str, Any]:
    """Prefills prompts sequentially, and returns the median."""
    say_step(f"prefill, {length} tokens")
    rng, seconds = random.Random(length), []
    for place in range(_NUM_PREFILLS + 1):
        driver = Driver(core)
        driver.add(_request(f"prefill-{length}-{place}", source, rng, length, 1, False))
        began = driver.clock()
        while driver.num_unfinished:
            driver.step()
        seconds.append(driver.clock() - began)
    prompt_s = median(seconds[1:])
    has_peak = roofline is not None and roofline.device.peak is not None
    return {
        "tokens": length,
        "prompt_ms": 1e3 * prompt_s,
        "tokens_per_s": length / prompt_s,
        "roofline_ms": 1e3 * roofline.prefill_seconds(length) if has_peak and roofline is not None else None,
    }


def _request(
    name: str, source: ModelSource, rng: random.Random, length: int, max_tokens: int | None, is_sampled: bool
) -> Request:
    """Returns a request that ends only at its limit."""
    params = replace(_SAMPLED if is_sampled else _GREEDY, max_tokens=max_tokens)
    return Request(name, tuple(draw_token_ids(length, source.config.vocab_size, rng)), params)


def _memory(core: EngineCore, roofline: Roofline | None) -> Mapping[str, Any]:
    """Compares the peak of the device's memory, or the process's memory on a CPU, with the plan."""
    slots, peak, limit = core.stats.slots, device_peak_bytes(), device_limit_bytes()
    planned = None if roofline is None else roofline.memory_bytes(slots)
    is_chip = roofline is not None and roofline.device.peak is not None  # a CPU has room for more slots than it serves
    problems = []
    if peak is not None and limit is not None and peak > limit:
        problems.append(f"the peak of device memory, {peak} bytes, is above the limit of {limit}")
    return {
        "slots": slots,
        "planned_slots": roofline.slots if is_chip and roofline is not None else None,
        "planned_bytes": planned,
        "peak_bytes": peak,
        "limit_bytes": limit,
        "process_bytes": resident_bytes(),
        "problems": problems,
    }


def _compiled_late(core: EngineCore) -> list[str]:
    count = core.stats.compiles_since_ready
    return [f"{count} programs were compiled after the start"] if count else []
