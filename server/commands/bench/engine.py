"""`roost bench engine`: prompts and tokens per second of the engine alone, without HTTP, text or threads."""

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from rich.console import Group

from ....engine import EngineCore, Request, device_facts
from ...model_hub import find_model
from ...settings import Settings, SettingsError, load_settings
from ...terminal.failure import INTERRUPTED_STATUS
from ..options import EngineBenchOptions, Workload
from .driver import (
    Driver,
    MeasuredStep,
    load,
    make_request,
    model_facts,
    run_at,
    run_by_rounds,
    run_in_turn,
    run_together,
    settings_as_json,
)
from .latency import RequestTrace, in_ms, latencies_ms, median_of
from .report import (
    Advance,
    check_json_file,
    interruption,
    make_table,
    milliseconds,
    opening,
    pick,
    progress_bar,
    shown_rate,
    titled,
    write_report,
)
from .workload import balanced_interval, draw_token_ids, parse_rate, poisson_times

_MAX_QUEUE: Final = 10**6


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
    rate = None if options.request_rate is None else parse_rate("--request-rate", options.request_rate)
    source = find_model(settings.model, settings.lora)
    document = opening("engine", _as_json(options, settings, rate))
    core = load(settings, source, _MAX_QUEUE)
    bench = Bench(options, settings, rate, source.config.vocab_size, core)
    interrupted = not bench.run()
    model, device = model_facts(source, settings, core), device_facts()
    document |= {"model": model, "device": device._asdict(), "interrupted": interrupted, "result": bench.result()}
    write_report(table(document), document, options.json)
    return INTERRUPTED_STATUS if interrupted else 0


class Bench:
    """Runs the workloads. Results so far can be read at any time.

    Args:
      options: Options of the command.
      settings: Settings of the engine; their seed also draws the prompts.
      rate: Arrivals per second of `mixed`; None adds a request after a fixed number of model rounds.
      vocab_size: Exclusive upper bound of the prompts' token ids.
      core: Engine that is ready.

    Raises:
      SettingsError: The concurrency is larger than the number of slots.
    """

    def __init__(
        self, options: EngineBenchOptions, settings: Settings, rate: float | None, vocab_size: int, core: EngineCore
    ) -> None:
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
        self._rate = rate
        self._vocab_size = vocab_size
        self._core = core
        self._runs: dict[str, list[Mapping[str, Any]]] = {}
        self._unfinished: tuple[str, Driver] | None = None

    def run(self) -> bool:
        """Runs everything. Returns False if Ctrl-C interrupted it."""
        try:
            run_in_turn(Driver(self._core), self._requests("warm-up", 0, 1, 2), 1)
            for workload in _workloads(self._options):
                self._repeat(workload)
        except KeyboardInterrupt:
            return False
        return True

    def result(self) -> Mapping[str, Any]:
        """Returns every run of each workload and their medians. An interrupted run is included."""
        if self._unfinished is not None and self._unfinished[1].steps:
            workload, driver = self._unfinished
            self._runs.setdefault(workload, []).append(summarize(workload, driver))
        return {
            "concurrency": self._concurrency,
            "rounds_between_arrivals": self._interval,
            "compiles_since_ready": self._core.stats.compiles_since_ready,
            "workloads": {name: {"median": median_of(runs), "runs": runs} for name, runs in self._runs.items()},
        }

    def _repeat(self, workload: str) -> None:
        options = self._options
        count = self._concurrency if workload == "decode" else self._num_prompts
        output_len = 1 if workload == "prefill" else options.output_len
        max_tokens = None if workload == "decode" else output_len
        with progress_bar(workload, options.repeat * count * output_len) as advance:
            for run in range(options.repeat):
                self._run(workload, run, self._requests(workload, run, count, max_tokens), advance)

    def _run(self, workload: str, run: int, requests: Sequence[Request], advance: Advance = lambda count: None) -> None:
        driver = Driver(self._core, advance)
        self._unfinished = workload, driver
        if workload == "decode":
            run_together(driver, requests, self._options.output_len)
        elif workload == "prefill":
            run_in_turn(driver, requests, self._concurrency)
        elif self._rate is None:
            run_by_rounds(driver, requests, self._interval)
        else:
            run_at(driver, requests, poisson_times(self._rate, len(requests), self._rng("times", run)))
        self._unfinished = None
        self._runs.setdefault(workload, []).append(summarize(workload, driver))
        driver.end()

    def _requests(self, workload: str, run: int, count: int, max_tokens: int | None) -> Sequence[Request]:
        rng = self._rng(workload, run)
        prompts = (draw_token_ids(self._options.input_len, self._vocab_size, rng) for _ in range(count))
        return [make_request(f"{workload}-{run}-{place}", prompt, max_tokens) for place, prompt in enumerate(prompts)]

    def _rng(self, *names: object) -> random.Random:
        return random.Random(f"{self._seed} {names}")


def _workloads(options: EngineBenchOptions) -> list[str]:
    return [each.value for each in Workload if each in (options.workload or Workload)]


def _as_json(options: EngineBenchOptions, settings: Settings, rate: float | None) -> Mapping[str, Any]:
    return {
        **settings_as_json(settings),
        "workloads": _workloads(options),
        "concurrency": options.concurrency,
        "input_len": options.input_len,
        "output_len": options.output_len,
        "num_prompts": options.num_prompts,
        "request_rate": rate,
        "repeat": options.repeat,
    }


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
    return titled(_title(document), [make_table(list(workloads), rows)], interruption(document["interrupted"]))


def _title(document: Mapping[str, Any]) -> str:
    model, device, options = document["model"], document["device"], document["options"]
    where = f"{model['name']}, {model['quantize'] or model['dtype']}, on {device['kind']}"
    load = f"{document['result']['concurrency']} of {model['slots']} slots in use, medians of {options['repeat']}"
    return f"{where}, {load}\neach with {options['input_len']:,} prompt and {options['output_len']:,} generated tokens"


def _rows(columns: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    yield "prompt tokens/s", [shown_rate(column["prompt_tokens_per_s"]) for column in columns]
    yield "generated tokens/s", [shown_rate(column["generated_tokens_per_s"]) for column in columns]
    for key, name, percents in (
        ("decode_step_ms", "decode step, ms", ("p50", "p99")),
        ("ttft_ms", "time to first token, ms", ("p50", "p99")),
        ("itl_ms", "between tokens (ITL), ms", ("p50", "p99")),
    ):
        for percent in percents:
            yield f"{name}, {percent}", [milliseconds(pick(column, key, percent)) for column in columns]
