"""Measures a fleet of simulated replicas behind HAProxy, and simulates one of up to 256.

    python tools/fleet/fleet.py --json benchmarks/fleet.json --results benchmarks/fleet.md [--only servers model]

"servers" takes less than eight minutes, and needs HAProxy (on Debian, apt-get install haproxy). Every
replica is a `roost serve --simulate` process, at a pace that leaves more than half of two cores idle:

- the model of a replica against 1, 4 and 16 servers, with the same requests;
- routing: random, by connections, by a hash of the prefix, and by the scores of the Gateway API Inference Extension's
  endpoint picker over the servers' metrics;
- a replica that is killed, one that drains, and a rolling update, behind HAProxy;
- more load than fits: 429 and what clients and HAProxy do about it.

"model" takes about five minutes on one core, and no particular quiet: a simulation by discrete events, whose results
don't depend on the machine. A run keeps the other part of the file.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any, Final

sys.path += [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "benchmarks")]

import orjson
from fleet_model import (
    Fleet,
    InTurn,
    LeastOfTwo,
    Outcome,
    Picker,
    Policy,
    PrefixHash,
    Router,
    Workload,
    arrivals,
    capacity,
    percentile,
    steady,
)
from fleet_page import NEVER_S, page, picture_of
from fleet_servers import BALANCES, Run, Server, proxying, run_load, serving
from results_page import commit
from roost.engine.planning.replicas import Arrival, Chip
from roost.server.commands.bench.report import opening

CHIP: Final = Chip(slots=16, step_s=0.02, prefill_tokens_per_s=8000.0, cached_prefixes=0)
LOAD: Final = Workload(prefixes=64, prefix_tokens=1024, question_tokens=32, output_tokens=(64, 192))
FEW_PREFIXES: Final = replace(LOAD, prefixes=12)
"""A load for the comparison of model and servers: all prefixes fit into a cache, so that its policy is left out."""

LONG: Final = replace(LOAD, output_tokens=(1024, 3072))
CACHE_GIB: Final = 0.25
USE: Final = 0.7
"""Share of the capacity of chips that have all prefixes, at which they are measured."""

SECONDS: Final = 13.0
"""Seconds of each load on servers."""

WARM_S: Final = 5.0
"""Seconds after the start of a load, whose requests are left out."""

SHORT: Final = 0.5
"""Share of the seconds for loads whose figures are counts, or that fill a queue of eight at once."""

UPDATE_S: Final = 40.0
"""Seconds of the load during a rolling update, which takes nearly as long."""

CALIBRATED: Final = (1, 4, 16)
TARGET_TTFT_S: Final = 1.0
"""99th percentile of the time to first token that a fleet promises."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="everything that was measured")
    parser.add_argument("--results", type=Path, metavar="FILE.md", help="a page; its picture lies beside it")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts (all)")
    options = parser.parse_args()
    document: dict[str, Any] = orjson.loads(options.json.read_bytes()) if options.json.is_file() else {}
    for part in options.only:
        facts = opening("fleet", {"seconds": SECONDS}) | {"tree": commit()}
        document[part] = facts | {"results": PARTS[part]()}
        options.json.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    if options.results is not None:
        options.results.write_text(page(document))
        options.results.with_suffix(".svg").write_text(picture_of(document["model"]["results"]))


def say(text: str) -> None:
    print(f"fleet: {text}", file=sys.stderr, flush=True)


# --- servers


def measure_servers() -> dict[str, Any]:
    """Returns all that is measured on servers."""
    results: dict[str, Any] = {"chip": {"slots": CHIP.slots, "step_s": CHIP.step_s}}
    say("calibration: 16 servers start")
    with serving(max(CALIBRATED), CHIP, CACHE_GIB) as servers:
        results["resident_mb"] = statistics.mean(server.resident_bytes for server in servers) / 1e6
        chip = with_measured_cache(servers[0])
        results["cached_prefixes"] = chip.cached_prefixes
        results["calibration"] = [calibrate(servers[:count], chip) for count in CALIBRATED]
        for server in servers[4:]:
            server.end(SIGKILL)
        results["routing"] = list(measure_routing(servers[:4]))
        results["faults"] = list(measure_faults(servers[:4]))
    with serving(2, replace(CHIP, max_queue=8), CACHE_GIB) as servers:
        results["overload"] = list(measure_overload(servers))
    return results


def with_measured_cache(server: Server) -> Chip:
    """Returns the chip with the number of prefixes that fit a server's cache, by the bytes of the first ones."""
    few = replace(LOAD, prefixes=8, output_tokens=(1, 1))
    before = server.metrics()["roost_state_cache_bytes"]
    run_load([server], few, [Arrival(0.1 * number, number, 1) for number in range(8)], salt=-1)
    each = (server.metrics()["roost_state_cache_bytes"] - before) / 8
    return replace(CHIP, cached_prefixes=int(CACHE_GIB * 2**30 / each))


def offered(count: int, use: float = USE) -> float:
    """Returns requests per second that use a share of the time of chips with all prefixes."""
    return use * count * capacity(CHIP, LOAD, 1.0)


def calibrate(servers: Sequence[Server], chip: Chip) -> dict[str, Any]:
    """Sends the same requests to servers, in turn, and to their model."""
    count = len(servers)
    say(f"calibration: {count} servers")
    load = steady(FEW_PREFIXES, offered(count), SECONDS + WARM_S, seed=count)
    cpu_before = cpu_seconds_of(servers)
    run = run_load(servers, FEW_PREFIXES, load, picks="in turn", salt=100 + count)
    cpu_share = (cpu_seconds_of(servers) - cpu_before) / run.seconds / len(os.sched_getaffinity(0))
    outcome = Fleet(chip, FEW_PREFIXES, InTurn()).run(count, load, SECONDS + 120)
    return {"replicas": count, "cpu_share": cpu_share, "servers": of_run(run), "model": of_outcome(outcome)}


def cpu_seconds_of(servers: Sequence[Server]) -> float:
    """Returns the processor time of servers and of their clients, which are this process."""
    return sum(server.cpu_s for server in servers) + time.process_time()


def of_run(run: Run) -> dict[str, float]:
    """Returns a summary of a run on servers, without its first seconds."""
    counted = [each for each in run.answers if each.arrival.at >= WARM_S]
    done = [each for each in counted if each.is_complete and each.ttft_s is not None]
    summary = summary_of([each.ttft_s or 0.0 for each in done], [each.e2e_s for each in done])
    end = max(each.sent_s + each.e2e_s for each in run.answers)
    tokens = sum(each.arrival.output_tokens for each in run.answers if each.is_complete)
    cut = sum(any("middle" in reason or "stream" in reason for reason in each.failures) for each in counted)
    tries = 1 + sum(len(each.failures) - (not each.is_complete) for each in run.answers) / len(run.answers)
    rest = {"requests": len(counted), "done": len(done), "cut": cut, "tries": tries}
    return summary | rest | {"tokens_per_s": tokens / end, "hit_share": run.hit_share}


def of_outcome(outcome: Outcome) -> dict[str, float]:
    """Returns a summary of a simulated load, without its first seconds."""
    done = [job for job in outcome.jobs if job.arrival.at >= WARM_S and job.end is not None and not job.failure]
    ends = [job.end or 0.0 for job in outcome.jobs]
    tokens = sum(job.arrival.output_tokens for job in outcome.jobs if not job.failure)
    summary = summary_of([job.ttft_s for job in done], [(job.end or 0.0) - job.arrival.at for job in done])
    hits = sum(job.was_hit for job in outcome.jobs) / len(outcome.jobs)
    hits *= LOAD.prefix_tokens / (LOAD.prefix_tokens + LOAD.question_tokens)
    counts = {"requests": sum(job.arrival.at >= WARM_S for job in outcome.jobs), "done": len(done)}
    return summary | counts | {"tokens_per_s": tokens / max(ends), "hit_share": hits}


def summary_of(ttft_s: Sequence[float], e2e_s: Sequence[float]) -> dict[str, float]:
    return {
        "ttft_mean_s": statistics.mean(ttft_s),
        "ttft_p50_s": percentile(ttft_s, 50),
        "ttft_p99_s": percentile(ttft_s, 99),
        "e2e_mean_s": statistics.mean(e2e_s),
    }


def measure_routing(servers: Sequence[Server]) -> Any:
    """Yields a result for each way of choosing a replica, with the same requests and prefixes of its own."""
    load = steady(LOAD, offered(len(servers)), SECONDS + WARM_S, seed=7)
    for salt, balance in enumerate(BALANCES):
        say(f"routing: {balance}")
        with proxying(servers, balance) as proxy:
            run = run_load(servers, LOAD, load, proxy=proxy, salt=salt)
        yield {"by": "haproxy", "way": balance, **of_run(run)}
    say("routing: scores")
    run = run_load(servers, LOAD, load, picks="scores", salt=99)
    yield {"by": "clients", "way": "scores of the endpoint picker", **of_run(run)}


def measure_faults(servers: Sequence[Server]) -> Any:
    """Yields what becomes of requests while replicas end, behind HAProxy."""

    def ended(signal_number: int) -> None:
        time.sleep(WARM_S + 2)
        servers[0].end(signal_number)

    def updated() -> None:
        time.sleep(WARM_S)
        for server in servers:
            server.end(SIGTERM)
            server.start()
            server.wait_ready()

    scenes: Mapping[str, Callable[[], None]] = {
        "nothing": lambda: None,
        "one of four killed": lambda: ended(SIGKILL),
        "one of four drained": lambda: ended(SIGTERM),
        "rolling update of all four": updated,
    }
    for salt, (name, scene) in enumerate(scenes.items()):
        say(f"faults: {name}")
        lasts_s = UPDATE_S if scene is updated else SHORT * SECONDS
        load = steady(LOAD, offered(len(servers), 0.5), lasts_s + WARM_S, seed=8)
        with proxying(servers, "least connections") as proxy:
            run = run_load(servers, LOAD, load, proxy=proxy, salt=200 + salt, beside=scene)
        yield {"what": name, "failures": dict(run.failures), **of_run(run)}
        for server in servers:
            if not server.is_ready():
                server.start()
                server.wait_ready()


def measure_overload(servers: Sequence[Server]) -> Any:
    """Yields what becomes of half more requests than fit, with a queue of eight."""
    load = steady(LOAD, offered(len(servers), 1.5), SHORT * SECONDS + WARM_S, seed=9)
    clients: Mapping[str, Mapping[str, Any]] = {
        "clients give up": {"retries": 0},
        "clients try again after 0.5 s": {"retries": 5, "waits": False},
        "clients wait as Retry-After says": {"retries": 5},
    }
    for salt, (name, behaviour) in enumerate(clients.items()):
        say(f"overload: {name}")
        run = run_load(servers, LOAD, load, picks="in turn", salt=300 + salt, **behaviour)
        yield {"what": name, "failures": dict(run.failures), **of_run(run)}
    title = "HAProxy tries any replica up to three times more"
    say(f"overload: {title}")
    with proxying(servers, "random", "conn-failure empty-response 429") as proxy:
        run = run_load(servers, LOAD, load, proxy=proxy, salt=310)
    yield {"what": title, "failures": dict(run.failures), **of_run(run)}


# --- the model


def simulate() -> dict[str, Any]:
    """Returns all that is simulated."""
    return {
        "cached_prefixes": MODEL_CHIP.cached_prefixes,
        "need": list(simulate_need()),
        "hot": list(simulate_hot()),
        "scaling": list(simulate_scaling()),
        "spot": list(simulate_spot()),
    }


MODEL_CHIP: Final = replace(CHIP, cached_prefixes=18)
ROUTERS: Final[Mapping[str, Callable[[], Router]]] = {
    "fewer requests of two": LeastOfTwo,
    "hash of the prefix": PrefixHash,
    "hash, bounded load": lambda: PrefixHash(1.25),
    "scores of the endpoint picker": Picker,
}
SIZES: Final = (1, 4, 16, 64, 256)


def workload_of(replicas: int, hot_share: float = 0.0) -> Workload:
    """Returns a load whose prefixes grow with the fleet: sixteen for each replica."""
    return replace(LOAD, prefixes=16 * replicas, hot_share=hot_share)


def simulated(replicas: int, workload: Workload, router: Router, use: float, until: float) -> Outcome:
    """Returns the outcome of a steady load; `use` is a share of the capacity with all prefixes."""
    rate = use * replicas * capacity(MODEL_CHIP, workload, 1.0)
    load = steady(workload, rate, until, 1)
    return Fleet(MODEL_CHIP, workload, router).run(replicas, load, until + 30, is_warm=True)


def settled(outcome: Outcome, after: float) -> dict[str, float]:
    """Returns how requests fared that arrived after the caches were warm."""
    jobs = [job for job in outcome.jobs if job.arrival.at >= after]
    ttft = [job.ttft_s if job.first is not None else NEVER_S for job in jobs]
    hits = sum(job.was_hit for job in jobs) / len(jobs)
    failed = sum(job.failure != "" for job in jobs) / len(jobs)
    return {"ttft_p50_s": percentile(ttft, 50), "ttft_p99_s": percentile(ttft, 99), "hits": hits, "failed": failed}


def simulate_need() -> Any:
    """Yields the most load per replica at which the target holds, by the size of the fleet."""
    for name, router in ROUTERS.items():
        for size in SIZES:
            low, high = 0.0, 1.0
            until = 60.0 + 4000.0 / size if size < 256 else 60.0
            for _ in range(6):
                middle = (low + high) / 2
                fared = settled(simulated(size, workload_of(size), router(), middle, until), until / 2)
                low, high = (middle, high) if fared["ttft_p99_s"] <= TARGET_TTFT_S else (low, middle)
            each = low * capacity(MODEL_CHIP, LOAD, 1.0)
            say(f"model: {name}, {size}: {each:.2f} requests/s for each replica")
            yield {"router": name, "replicas": size, "use": low, "requests_per_s": each}


def simulate_hot() -> Any:
    """Yields how the share of one prefix matters to 100 replicas."""
    for name, router in ROUTERS.items():
        for share in (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4):
            outcome = simulated(100, workload_of(100, share), router(), USE, 90.0)
            yield {"router": name, "share": share, **settled(outcome, 45.0)}


def simulate_scaling() -> Any:
    """Yields how long the start of a replica matters while a load doubles within a minute."""
    before, doubled_at, ramp_s, until = 40, 60.0, 60.0, 720.0
    for target in (0.5, 0.65, 0.8):
        base = target * before * CHIP.slots / (LOAD.mean_output * CHIP.step_s)

        def rate(now: float, base: float = base) -> float:
            return base * (1 + min(max((now - doubled_at) / ramp_s, 0.0), 1.0))

        for start_s in (5.0, 30.0, 60.0, 120.0, 300.0):
            load = arrivals(LOAD, rate, 2 * base, until, 3)
            policy = Policy(start_s=start_s, target=target)
            outcome = Fleet(MODEL_CHIP, LOAD, Picker(), policy).run(before, load, until + 60)
            fared = settled(outcome, doubled_at)
            say(f"model: target {target}, start {start_s:g} s: {fared}")
            yield {"target": target, "start_s": start_s, **fared}


def simulate_spot() -> Any:
    """Yields how many long replies are cut by reclaims."""
    for notice_s in (0.0, 30.0, 120.0):
        for per_hour in (0.0, 0.1, 0.3, 1.0, 3.0, 6.0):
            rate = USE * 100 * CHIP.slots / (LONG.mean_output * CHIP.step_s)
            policy = Policy(start_s=120.0, reclaims_per_hour=per_hour, notice_s=notice_s)
            outcome = Fleet(MODEL_CHIP, LONG, Picker(), policy).run(100, steady(LONG, rate, 1800.0, 5), 2000.0)
            cut = outcome.num_cut / len(outcome.jobs)
            yield {"notice_s": notice_s, "per_hour": per_hour, "cut": cut, **settled(outcome, 120.0)}


PARTS: Final[Mapping[str, Callable[[], dict[str, Any]]]] = {"servers": measure_servers, "model": simulate}


if __name__ == "__main__":
    main()
