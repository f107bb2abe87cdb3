"""`roost bench engine`: prompts and tokens per second of the engine alone, without HTTP, text or threads.

A `Driver` steps the engine and records times; `Bench` runs workloads with it.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

from rich.console import Group

from ....engine import EngineCore, ModelSource, Request, SamplingParams, device_facts, load_engine, state_bytes
from ...assembly.service import LoadProgress, engine_config
from ...model_hub import find_model
from ...settings import Settings, SettingsError, load_settings
from ...terminal.exits import INTERRUPTED_STATUS
from ..options import EngineBenchOptions, Workload
from .report import (
    Advance,
    RequestTrace,
    check_json_file,
    in_ms,
    latencies_ms,
    make_table,
    median_of,
    milliseconds,
    opening,
    pick,
    progress_bar,
    shown_rate,
    titled,
    write_report,
)
from .workload import balanced_interval, draw_token_ids

_MAX_QUEUE: Final = 10**6

_OPTIONS: Final = ("concurrency", "input_len", "output_len", "num_prompts", "repeat")
"""Options that the JSON document has, in addition to the workloads."""

type Clock = Callable[[], float]
"""Returns monotonic seconds."""


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """One step of the engine.

    Attributes:
      seconds: Duration.
      host_seconds: Part of it in which the host did not wait for the device: planning, dispatch, booking.
      rows: Number of requests that got tokens.
      tokens: Number of tokens of all requests.
      rounds: Maximum number of tokens of a request; the device may decode several before the host sees them.
      is_decode: Whether neither this step nor the one before, whose end it waited for, prefilled a prompt.
    """

    seconds: float
    host_seconds: float
    rows: int
    tokens: int
    rounds: int
    is_decode: bool


class Driver:
    """Steps an engine and records its times. All requests must have different ids.

    Args:
      core: Engine that is ready.
      advance: Called with the number of tokens of each step.
      clock: Source of time.

    Attributes:
      clock: Source of time.
      started_s: Time when the driver was made.
      steps: Steps in their order.
      num_rounds: Model rounds so far: one for every token of a request, and one for every chunk of a prompt.
      num_unfinished: Number of requests that were added and have not ended.
    """

    def __init__(
        self, core: EngineCore, advance: Advance = lambda count: None, clock: Clock = time.perf_counter
    ) -> None:
        self._core = core
        self._advance = advance
        self.clock = clock
        self.started_s: Final = clock()
        self.steps: list[MeasuredStep] = []
        self.num_rounds = 0
        self.num_unfinished = 0
        self._traces: dict[str, RequestTrace] = {}
        self._prompt_tokens = core.stats.prompt_tokens
        self._prompt_tokens_before = self._prompt_tokens
        self._last_was_prefill = False

    @property
    def is_idle(self) -> bool:
        """Returns whether a step would do nothing."""
        return self._core.is_idle

    @property
    def prompt_tokens(self) -> int:
        """Number of prompt tokens prefilled since the start."""
        return self._prompt_tokens - self._prompt_tokens_before

    @property
    def generated_tokens(self) -> int:
        """Number of tokens generated since the start."""
        return sum(step.tokens for step in self.steps)

    def add(self, request: Request) -> None:
        """Queues a request."""
        num_tokens = len(request.prompt_token_ids)
        self._traces[request.id] = RequestTrace(self.clock(), prompt_tokens=num_tokens, output_tokens=0)
        self.num_unfinished += 1
        self._core.add(request)

    def step(self) -> None:
        """Runs one step of the engine."""
        began, waited_s = self.clock(), self._core.stats.wait_seconds
        outputs = self._core.step()
        now = self.clock()
        for request_id, output in outputs:
            self.num_unfinished -= output.finish_reason is not None
            if output.token_ids:
                trace = self._traces[request_id]
                trace.token_times_s.append(now)
                trace.end_s, trace.output_tokens = now, (trace.output_tokens or 0) + len(output.token_ids)
        seconds, waited_s = now - began, self._core.stats.wait_seconds - waited_s
        self._record(seconds, seconds - waited_s, [len(output.token_ids) for _, output in outputs])

    def _record(self, seconds: float, host_seconds: float, tokens: Sequence[int]) -> None:
        read = self._core.stats.prompt_tokens
        is_prefill, self._prompt_tokens = read > self._prompt_tokens, read
        is_decode = not is_prefill and not self._last_was_prefill
        rounds = max(tokens, default=0)
        if tokens or is_prefill:
            self.steps.append(MeasuredStep(seconds, host_seconds, len(tokens), sum(tokens), rounds, is_decode))
        self.num_rounds += max(1, rounds)
        self._last_was_prefill = is_prefill
        self._advance(sum(tokens))

    def fewest_tokens(self) -> int:
        """Returns the minimum number of tokens over all requests."""
        return min(trace.output_tokens or 0 for trace in self._traces.values())

    def finish(self) -> None:
        """Steps until all requests have ended."""
        while self.num_unfinished:
            self.step()

    def end(self) -> None:
        """Aborts all requests. The steps that this takes are not recorded."""
        for request_id in self._traces:
            self._core.abort(request_id)
        while not self._core.is_idle:
            self._core.step()
        self.num_unfinished = 0

    def traces(self) -> Sequence[RequestTrace]:
        """Returns the traces of all requests that have a token, whether or not they have ended."""
        return [trace for trace in self._traces.values() if trace.token_times_s]


def bench_engine(options: EngineBenchOptions) -> int:
    """Measures and reports.

    Returns:
      The exit status.

    Raises:
      SettingsError: An option cannot be used.
      RoostError: The model cannot be loaded.
    """
    settings = load_settings(options.settings)
    check_json_file(options.json)
    source = find_model(settings.model, settings.lora)
    given = {name: getattr(options, name) for name in _OPTIONS}
    document = opening("engine", {**settings_as_json(settings), "workloads": _workloads(options), **given})
    try:
        core = load(settings, source)
        result = Bench(options, settings, source.config.vocab_size, core).run()
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS
    model = model_facts(source, settings, core)
    document |= {"model": model, "device": device_facts()._asdict(), "result": result}
    write_report(table(document), document, options.json)
    return 0


class Bench:
    """Runs the workloads.

    Args:
      options: Options of the command.
      settings: Settings of the engine; their seed also draws the prompts.
      vocab_size: Exclusive upper bound of the prompts' token ids.
      core: Engine that is ready.

    Raises:
      SettingsError: The concurrency is larger than the number of slots.
    """

    def __init__(self, options: EngineBenchOptions, settings: Settings, vocab_size: int, core: EngineCore) -> None:
        slots = core.stats.slots
        self._concurrency = options.concurrency or slots
        if self._concurrency > slots:
            text = f"--concurrency {self._concurrency}: there are {slots} slots; add --slots {self._concurrency}"
            raise SettingsError(text)
        self._num_prompts = options.num_prompts or 2 * self._concurrency
        self._interval = balanced_interval(
            options.input_len, options.output_len, self._concurrency, settings.prefill_chunk
        )
        self._options = options
        self._seed = settings.seed
        self._vocab_size = vocab_size
        self._core = core

    def run(self) -> Mapping[str, Any]:
        """Returns every run of each workload and their medians."""
        run_in_turn(Driver(self._core), self._requests("warm-up", 0, 1, 2), 1)
        runs = {name: self._repeat(name) for name in _workloads(self._options)}
        return {
            "concurrency": self._concurrency,
            "rounds_between_arrivals": self._interval,
            "compiles_since_ready": self._core.stats.compiles_since_ready,
            "workloads": {name: {"median": median_of(found), "runs": found} for name, found in runs.items()},
        }

    def _repeat(self, workload: str) -> list[Mapping[str, Any]]:
        options = self._options
        count = self._concurrency if workload == "decode" else self._num_prompts
        output_len = 1 if workload == "prefill" else options.output_len
        max_tokens = None if workload == "decode" else output_len
        with progress_bar(workload, options.repeat * count * output_len) as advance:
            requests = (self._requests(workload, run, count, max_tokens) for run in range(options.repeat))
            return [self._run(workload, each, advance) for each in requests]

    def _run(self, workload: str, requests: Sequence[Request], advance: Advance) -> Mapping[str, Any]:
        driver = Driver(self._core, advance)
        if workload == "decode":
            run_together(driver, requests, self._options.output_len)
        elif workload == "prefill":
            run_in_turn(driver, requests, self._concurrency)
        else:
            run_by_rounds(driver, requests, self._interval)
        found = summarize(workload, driver)
        driver.end()
        return found

    def _requests(self, workload: str, run: int, count: int, max_tokens: int | None) -> Sequence[Request]:
        rng = random.Random(f"{self._seed} {workload} {run}")
        prompts = (draw_token_ids(self._options.input_len, self._vocab_size, rng) for _ in range(count))
        return [make_request(f"{workload}-{run}-{place}", prompt, max_tokens) for place, prompt in enumerate(prompts)]


def _workloads(options: EngineBenchOptions) -> list[str]:
    return [each.value for each in Workload if each in (options.workload or Workload)]


def summarize(workload: str, driver: Driver) -> dict[str, Any]:
    """Returns the numbers of one run.

    Tokens per second cover the whole run, except for `decode`: its tokens per second and times between tokens cover the
    steps in which all requests decode and no prompt is prefilled. Rates that a workload does not measure are None.
    """
    seconds = max(driver.clock() - driver.started_s, 1e-9)
    decode = [step for step in driver.steps if step.is_decode]
    overall = driver.generated_tokens / seconds
    generated = {"prefill": None, "decode": full_batch_rate(decode), "mixed": overall}
    traces = driver.traces()
    latencies = latencies_ms(traces)
    if workload == "decode":
        latencies["itl_ms"] = in_ms(gaps_of_all(traces))
    return {
        "duration_s": seconds,
        "steps": len(driver.steps),
        "prompt_tokens": driver.prompt_tokens,
        "generated_tokens": driver.generated_tokens,
        "prompt_tokens_per_s": None if workload == "decode" else driver.prompt_tokens / seconds,
        "generated_tokens_per_s": generated[workload],
        "decode_step_ms": in_ms(step.seconds / step.rounds for step in decode if step.rounds),
        **latencies,
    }


def gaps_of_all(traces: Sequence[RequestTrace]) -> Iterator[float]:
    """Yields the seconds between tokens, from the time when every request has its first one."""
    start = max((trace.token_times_s[0] for trace in traces), default=0.0)
    for trace in traces:
        yield from (after - before for before, after in pairwise(trace.token_times_s) if before >= start)


def full_batch_rate(steps: Sequence[MeasuredStep]) -> float | None:
    """Returns the tokens per second over the steps with the maximum number of requests."""
    most = max((step.rows for step in steps), default=0)
    full = [step for step in steps if step.rows == most]
    seconds = sum(step.seconds for step in full)
    return sum(step.tokens for step in full) / seconds if seconds else None


def table(document: Mapping[str, Any]) -> Group:
    """Returns the medians over the runs, with a column for each workload."""
    workloads = document["result"]["workloads"]
    columns = [workloads[name]["median"] for name in workloads]
    rows = [[name, *cells] for name, cells in _rows(columns) if any(cell != "–" for cell in cells)]
    return titled(_title(document), [make_table(list(workloads), rows)])


def _title(document: Mapping[str, Any]) -> str:
    model, device, options = document["model"], document["device"], document["options"]
    where = f"{model['name']}, {model['quantize'] or model['dtype']}, on {device['kind']}"
    load = f"{document['result']['concurrency']} of {model['slots']} slots in use, medians of {options['repeat']}"
    return f"{where}, {load}\neach with {options['input_len']:,} prompt and {options['output_len']:,} generated tokens"


def _rows(columns: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    yield "prompt tokens/s", [shown_rate(column["prompt_tokens_per_s"]) for column in columns]
    yield "generated tokens/s", [shown_rate(column["generated_tokens_per_s"]) for column in columns]
    for key, name in (
        ("decode_step_ms", "decode step, ms"),
        ("ttft_ms", "time to first token, ms"),
        ("itl_ms", "between tokens (ITL), ms"),
    ):
        for percent in ("p50", "p99"):
            yield f"{name}, {percent}", [milliseconds(pick(column, key, percent)) for column in columns]


def run_in_turn(driver: Driver, requests: Iterable[Request], concurrency: int) -> None:
    """Adds the next request as soon as fewer than `concurrency` are unfinished (closed loop)."""
    for request in requests:
        while driver.num_unfinished >= concurrency:
            driver.step()
        driver.add(request)
    driver.finish()


def run_together(driver: Driver, requests: Iterable[Request], num_tokens: int) -> None:
    """Runs all requests concurrently until each has at least `num_tokens` tokens. The requests have no limit."""
    for request in requests:
        driver.add(request)
    while driver.fewest_tokens() < num_tokens:
        driver.step()


def run_by_rounds(driver: Driver, requests: Iterable[Request], interval: int) -> None:
    """Adds a request every `interval` model rounds (open loop), which gives the same batches each time."""
    for number, request in enumerate(requests, start=1):
        driver.add(request)
        driver.step()
        while driver.num_rounds < number * interval and not driver.is_idle:
            driver.step()
    driver.finish()


def load(settings: Settings, source: ModelSource) -> EngineCore:
    """Returns an engine that is ready. It has no prefix cache, so that every prompt is prefilled.

    Args:
      settings: Settings of the engine.
      source: Model to load.

    Raises:
      RoostError: A setting is wrong, or the model cannot be loaded.
    """
    config = replace(engine_config(settings), max_queue=_MAX_QUEUE, state_cache_gib=0)
    with closing(LoadProgress()) as progress:
        return load_engine(source, config, progress)


def make_request(name: str, prompt: Sequence[int], max_tokens: int | None) -> Request:
    """Returns a greedy request that ends only at its limit; None sets no limit."""
    return Request(name, tuple(prompt), SamplingParams(max_tokens=max_tokens, temperature=0.0))


def model_facts(source: ModelSource, settings: Settings, core: EngineCore) -> Mapping[str, Any]:
    """Returns facts about the model and its slots."""
    dtype = source.config.dtype if settings.dtype == "auto" else settings.dtype
    config = source.with_kv_dtype(settings.kv_dtype).config
    return {
        "name": source.name,
        "parameters": source.config.num_parameters,
        "dtype": dtype,
        "quantize": settings.quantize or source.config.quantize,
        "kv_dtype": settings.kv_dtype,
        "slots": core.stats.slots,
        "state_bytes_per_slot": state_bytes(config, 4 if dtype == "float32" else 2),
    }


def settings_as_json(settings: Settings) -> Mapping[str, Any]:
    """Returns the settings that affect an engine; None slots means as many as memory permits."""
    return settings.model_dump(include={"model", "slots", "dtype", "quantize", "kv_dtype", "prefill_chunk", "seed"})
