"""`roost bench engine`: prompts and tokens per second of the engine alone, without HTTP, text or threads."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .....engine import EngineCore, Request, device_facts
from ....model_hub import find_model
from ....settings import Settings, SettingsError
from ....terminal.failure import INTERRUPTED_STATUS
from ..latency import median_of
from ..progress import Advance, progress_bar
from ..report import Outputs, opening
from ..workload import balanced_interval, draw_token_ids, poisson_times
from .driver import Driver, run_at, run_by_rounds, run_in_turn, run_together
from .loading import load, make_request, model_facts, settings_as_json
from .result import summarize, table

_MAX_QUEUE: Final = 10**6


@dataclass(frozen=True, slots=True)
class EngineBenchOptions:
    """Options of `roost bench engine`.

    Attributes:
      settings: Settings of the engine; their seed also draws the prompts.
      workloads: Any of `prefill`, `decode` and `mixed`.
      concurrency: Number of running requests; None uses all slots.
      input_len, output_len: Tokens of each prompt and of each response.
      num_prompts: Requests of a run of `prefill` or `mixed`; None takes twice the concurrency. `decode` has one request
        per slot in use.
      request_rate: Arrivals per second of `mixed`; None adds a request after a fixed number of model rounds.
      repeat: Number of runs of each workload.
    """

    settings: Settings
    workloads: Sequence[str]
    concurrency: int | None
    input_len: int
    output_len: int
    num_prompts: int | None
    request_rate: float | None
    repeat: int


@dataclass(frozen=True, slots=True)
class BenchSizes:
    """Numbers that depend on the number of slots.

    Attributes:
      concurrency: Number of running requests.
      num_prompts: Requests of a run of `prefill` or `mixed`.
      interval: Model rounds between two arrivals of `mixed`.
    """

    concurrency: int
    num_prompts: int
    interval: int

    @classmethod
    def of(cls, options: EngineBenchOptions, slots: int) -> "BenchSizes":
        """Returns the plan for a number of slots.

        Raises:
          SettingsError: The concurrency is larger than the number of slots.
        """
        concurrency = options.concurrency or slots
        if concurrency > slots:
            raise SettingsError(f"--concurrency {concurrency}: there are {slots} slots; add --slots {concurrency}")
        chunk = options.settings.prefill_chunk
        interval = balanced_interval(options.input_len, options.output_len, concurrency, chunk)
        return cls(concurrency, options.num_prompts or 2 * concurrency, interval)


def bench_engine(options: EngineBenchOptions, outputs: Outputs) -> int:
    """Measures and reports.

    Returns:
      The exit status.

    Raises:
      SettingsError: An option cannot be used.
      RoostError: The model cannot be loaded.
    """
    outputs.check()
    source = find_model(options.settings.model, options.settings.lora)
    document = opening("engine", _as_json(options))
    core = load(options.settings, source, _MAX_QUEUE)
    plan = BenchSizes.of(options, core.stats.slots)
    bench = Bench(options, plan, source.config.vocab_size, core)
    interrupted = not bench.run()
    model, device = model_facts(source, options.settings, core), device_facts()
    document |= {"model": model, "device": device._asdict(), "interrupted": interrupted, "result": bench.result()}
    outputs.console().print(table(document))
    outputs.write_json(document)
    return INTERRUPTED_STATUS if interrupted else 0


class Bench:
    """Runs the workloads. Results so far can be read at any time."""

    def __init__(self, options: EngineBenchOptions, plan: BenchSizes, vocab_size: int, core: EngineCore) -> None:
        self._options = options
        self._plan = plan
        self._vocab_size = vocab_size
        self._core = core
        self._runs: dict[str, list[Mapping[str, Any]]] = {}
        self._unfinished: tuple[str, Driver] | None = None

    def run(self) -> bool:
        """Runs everything. Returns False if Ctrl-C interrupted it."""
        try:
            run_in_turn(Driver(self._core), self._requests("warm-up", 0, 1, 2), 1)
            for workload in self._options.workloads:
                self._repeat(workload)
        except KeyboardInterrupt:
            return False
        return True

    def result(self) -> Mapping[str, Any]:
        """Returns every run of each workload and their medians. An interrupted run is included."""
        if self._unfinished is not None and self._unfinished[1].steps:
            workload, driver = self._unfinished
            self._runs.setdefault(workload, []).append(summarize(workload, driver))
        plan = {"concurrency": self._plan.concurrency, "rounds_between_arrivals": self._plan.interval}
        runs = {name: {"median": median_of(runs), "runs": runs} for name, runs in self._runs.items()}
        return {**plan, "compiles_since_ready": self._core.stats.compiles_since_ready, "workloads": runs}

    def _repeat(self, workload: str) -> None:
        options, plan = self._options, self._plan
        count = plan.concurrency if workload == "decode" else plan.num_prompts
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
            run_in_turn(driver, requests, self._plan.concurrency)
        elif self._options.request_rate is None:
            run_by_rounds(driver, requests, self._plan.interval)
        else:
            run_at(driver, requests, poisson_times(self._options.request_rate, len(requests), self._rng("times", run)))
        self._unfinished = None
        self._runs.setdefault(workload, []).append(summarize(workload, driver))
        driver.end()

    def _requests(self, workload: str, run: int, count: int, max_tokens: int | None) -> Sequence[Request]:
        rng = self._rng(workload, run)
        prompts = (draw_token_ids(self._options.input_len, self._vocab_size, rng) for _ in range(count))
        return [make_request(f"{workload}-{run}-{place}", prompt, max_tokens) for place, prompt in enumerate(prompts)]

    def _rng(self, *names: object) -> random.Random:
        return random.Random(f"{self._options.settings.seed} {names}")


def _as_json(options: EngineBenchOptions) -> Mapping[str, Any]:
    return {
        **settings_as_json(options.settings),
        "workloads": list(options.workloads),
        "concurrency": options.concurrency,
        "input_len": options.input_len,
        "output_len": options.output_len,
        "num_prompts": options.num_prompts,
        "request_rate": options.request_rate,
        "repeat": options.repeat,
    }
