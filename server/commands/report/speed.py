"""Measurements: decode and prefill against the roofline, a job over HTTP, and a profile of decode steps."""

import asyncio
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from ....engine import (
    EngineCore,
    ModelSource,
    Request,
    Roofline,
    SamplingParams,
    compute_roofline,
    device_facts,
    device_named,
    find_device,
    longest_operations,
    memory_stats,
    profiled,
)
from ...model_hub import find_model
from ...settings import Settings
from ..bench.engine import Driver, MeasuredStep, load, model_facts, run_together
from ..bench.report import resident_bytes
from ..bench.serve import Run
from ..bench.workload import draw_token_ids
from ..options import ReportOptions, ServeBenchOptions
from .parts import say_step

_COUNTS: Final = (1, 8, 64, 256)
"""Numbers of requests that decode together. All slots are measured, too."""

_QUICK_COUNTS: Final = (1, 8)

_PROMPTS: Final = (512, 2048)
_SHORT_PROMPT: Final = 16
_MEASURE_S: Final = 3.0
_MAX_STEPS: Final = 200
_NUM_PREFILLS: Final = 3

_SAMPLED: Final = SamplingParams(temperature=0.8, top_p=0.95, seed=0)
_GREEDY: Final = SamplingParams(temperature=0.0)


def speed(options: ReportOptions) -> Mapping[str, Any]:
    """Returns the measured rows, the memory, and the duration of the start."""
    settings = options.load()
    source, began = find_model(settings.model), time.perf_counter()
    core = load(settings, source)
    start_s, slots = time.perf_counter() - began, core.stats.slots
    roofline = _roofline(source, settings)
    counts = [count for count in (_QUICK_COUNTS if options.quick else _COUNTS) if count < slots]
    counts += [] if options.quick else [slots]
    decode = [
        _decode_row(core, source, roofline, count, is_sampled) for count in counts for is_sampled in (False, True)
    ]
    prefill = [] if options.quick else [_prefill_row(core, source, roofline, length) for length in _PROMPTS]
    late = core.stats.compiles_since_ready
    return {
        "model": model_facts(source, settings, core),
        "start_seconds": start_s,
        "compiles_since_ready": late,
        "decode": decode,
        "prefill": prefill,
        "memory": _memory(slots, roofline),
        "problems": [f"{late} programs were compiled after the start"] if late else [],
    }


def _roofline(source: ModelSource, settings: Settings) -> Roofline | None:
    """Returns the plan for this device; None without a data sheet, as for a CPU."""
    name = device_named(device_facts().kind)
    if name is None:
        return None
    dtype = source.config.dtype if settings.dtype == "auto" else settings.dtype
    quantize, config = settings.quantize or source.config.quantize, source.with_kv_dtype(settings.kv_dtype).config
    return compute_roofline(config, find_device(name), 4 if dtype == "float32" else 2, quantize=quantize)


def _decode_row(
    core: EngineCore, source: ModelSource, roofline: Roofline | None, count: int, is_sampled: bool
) -> Mapping[str, Any]:
    """Lets requests decode together, and returns medians over steps."""
    say_step(f"decode, {count} {'sampled' if is_sampled else 'greedy'}")
    driver = _decoding(core, source, count, is_sampled)
    first, until = len(driver.steps), driver.clock() + _MEASURE_S
    while driver.clock() < until and len(driver.steps) - first < _MAX_STEPS:
        driver.step()
    steps = [step for step in driver.steps[first:] if step.is_decode and step.rows == count]
    length = driver.generated_tokens // count + _SHORT_PROMPT
    driver.end()
    return {
        "requests": count,
        "is_sampled": is_sampled,
        **_step_rates(steps),
        **_bounds(roofline, count, length),
    }


def _decoding(core: EngineCore, source: ModelSource, count: int, is_sampled: bool) -> Driver:
    """Returns a driver whose requests all decode."""
    driver, rng = Driver(core), random.Random(count)
    names = (f"decode-{count}-{is_sampled}-{place}" for place in range(count))
    run_together(driver, [_request(name, source, rng, _SHORT_PROMPT, None, is_sampled) for name in names], 2)
    return driver


def _step_rates(steps: Sequence[MeasuredStep]) -> Mapping[str, Any]:
    seconds = sum(step.seconds for step in steps)
    return {
        "num_steps": len(steps),
        "step_ms": 1e3 * median(step.seconds / step.rounds for step in steps) if steps else None,
        "host_ms": 1e3 * median(step.host_seconds / step.rounds for step in steps) if steps else None,
        "tokens_per_s": sum(step.tokens for step in steps) / seconds if seconds else None,
    }


def _bounds(roofline: Roofline | None, count: int, length: int) -> Mapping[str, Any]:
    """Returns the plan's step with full windows, and the roofline of what ran, in milliseconds."""
    if roofline is None:
        return {"plan_ms": None, "roofline_ms": None}
    tokens = count * min(length, roofline.config.window)
    return {
        "plan_ms": 1e3 * roofline.decode_seconds(count),
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
        driver.finish()
        seconds.append(driver.clock() - began)
    prompt_s = median(seconds[1:])
    return {
        "tokens": length,
        "prompt_ms": 1e3 * prompt_s,
        "tokens_per_s": length / prompt_s,
        "roofline_ms": None if roofline is None else 1e3 * roofline.prefill_seconds(length),
    }


def _request(
    name: str, source: ModelSource, rng: random.Random, length: int, max_tokens: int | None, is_sampled: bool
) -> Request:
    """Returns a request that ends only at its limit."""
    params = replace(_SAMPLED if is_sampled else _GREEDY, max_tokens=max_tokens)
    return Request(name, tuple(draw_token_ids(length, source.config.vocab_size, rng)), params)


def _memory(slots: int, roofline: Roofline | None) -> Mapping[str, Any]:
    """Returns the memory in use beside the plan: the device's, and on a CPU the process's."""
    stats = memory_stats()
    return {
        "slots": slots,
        "planned_slots": None if roofline is None else roofline.slots,
        "planned_bytes": None if roofline is None else roofline.memory_bytes(slots),
        "peak_bytes": stats.get("peak_bytes_in_use"),
        "limit_bytes": stats.get("bytes_limit"),
        "process_bytes": resident_bytes(),
    }


_START_S: Final = 900.0
_STOP_S: Final = 60.0


def job(options: ReportOptions) -> Mapping[str, Any]:
    """Returns the client's result of the job.

    Raises:
      RuntimeError: The server did not start.
      CommandError: The first request failed.
    """
    with tempfile.TemporaryDirectory() as name, _serving(options, Path(name) / "serve.log") as url:
        run = Run(ServeBenchOptions(url=url, num_prompts=32, ignore_eos=True))
        asyncio.run(run.all())
    result = run.result()
    failed = result["requests"]["failed"]
    return {"result": result, "problems": [f"{failed} of 32 requests failed"] if failed else []}


@contextmanager
def _serving(options: ReportOptions, log: Path) -> Iterator[str]:
    """Yields the address of a server that is ready, and stops it."""
    command = [sys.executable, "-P", "-m", "roost.server", "serve", *_flags(options), "--port", "0"]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        yield _server_address(process, log)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _flags(options: ReportOptions) -> Iterator[str]:
    yield options.model
    for name, value in options.given().items():
        yield f"--{name.replace('_', '-')}={value}"
    for kernel in options.without_kernels:
        yield f"--without-kernels={kernel}"


def _server_address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_S
    while (found := re.search(r"^address +(http://\S+)/v1$", log.read_text(), re.MULTILINE)) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            last = (log.read_text().strip().splitlines() or ["no log"])[-1]
            raise RuntimeError(f"the server did not start: {last}")
        time.sleep(0.1)
    return found[1]


_NUM_STEPS: Final = 20
_NUM_OPERATIONS: Final = 10


def profile(options: ReportOptions) -> Mapping[str, Any]:
    """Records a profile of steps with every slot in use, and returns the longest operations."""
    settings = options.load()
    source = find_model(settings.model)
    core = load(settings, source)
    driver = _decoding(core, source, core.stats.slots, is_sampled=False)
    folder = options.out / "profile"
    say_step("recording")
    first = len(driver.steps)
    with profiled(folder):
        while len(driver.steps) - first < _NUM_STEPS:
            driver.step()
    steps = driver.steps[first:]
    seconds = sum(step.seconds for step in steps)
    found = longest_operations(folder, _NUM_OPERATIONS)
    driver.end()
    return {
        "folder": folder.name,  # no path, which may name a person
        "requests": core.stats.slots,
        "steps": len(steps),
        "tokens_per_request": sum(step.rounds for step in steps),
        "token_ms": 1e3 * seconds / sum(step.rounds for step in steps),
        "busy_share": None if found.busy_seconds is None else found.busy_seconds / seconds,
        "operations": [operation._asdict() for operation in found.operations],
        "problems": [],
    }
