"""Measures several simulated chips of one host: one process over all of them, against a process for each.

    python tools/fleet/host_chips.py --results benchmarks/host_chips.md

- Tokens per second that one process delivers to streams, an event for each token, whatever the number of its chips; and
  what two processes deliver, as far as two cores allow.
- Memory, and hits of the prefix caches, of one process and of four with a quarter of the cache each.

It takes about four minutes on two quiet cores, one of which the client needs.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

sys.path += [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "benchmarks")]

from event_path import Client, cpu_seconds, free_port, roost_command, running
from fleet import CHIP, LOAD, of_run, offered
from fleet_model import steady
from fleet_servers import run_load, serving
from results_page import commit, paragraph, table, where
from roost.server.commands.bench.report import machine, now

STREAMS: Final = 512
RATES: Final = (20_000, 30_000, 40_000, 50_000, 60_000)
"""Tokens per second of all chips together."""

KEEPS_UP: Final = 0.95
"""Share of the tokens that come as events of their own on a front end that keeps up; a slower one joins them."""

SECONDS: Final = 5.0
"""Seconds of each delivery; hits are counted for four times as long."""

CHIPS: Final = 4
CACHE_GIB: Final = 1.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """What streams got.

    Attributes:
      processes, chips: Number of processes, and of chips of each.
      wanted: Tokens per second of all chips together.
      events: Events per second.
      cpu_us: Processor time of all threads per event, in microseconds.
    """

    processes: int
    chips: int
    wanted: float
    events: float
    cpu_us: float

    @property
    def keeps_up(self) -> bool:
        return self.events >= KEEPS_UP * self.wanted


def deliver(processes: int, chips: int, wanted: float) -> Delivery:
    """Serves the same number of streams with some processes, each over some chips."""
    streams = STREAMS // processes
    step_ms = 1e3 * STREAMS / wanted
    with ExitStack() as stack:
        clients, pids = [], []
        for _ in range(processes):
            port = free_port()
            command = roost_command(port, streams, step_ms, ["--mesh", f"data={chips}"])
            pids.append(stack.enter_context(running(command, port)))
            clients.append(Client(port, "chat", streams))
        for client in clients:
            client.read_until_all_speak()
        _read(clients, 1.0)
        start, before, events = time.monotonic(), _cpu_s(pids), sum(client.num_events for client in clients)
        _read(clients, SECONDS)
        elapsed = time.monotonic() - start
        count = sum(client.num_events for client in clients) - events
        cpu_us = 1e6 * (_cpu_s(pids) - before) / count
        for client in clients:
            client.close()
    return Delivery(processes, chips, wanted, count / elapsed, cpu_us)


def _read(clients: Sequence[Client], seconds: float) -> None:
    """Reads the streams of all clients in turn."""
    for _ in range(round(seconds / 0.02)):
        for client in clients:
            client.read(0.02 / len(clients))


def _cpu_s(pids: Sequence[int]) -> float:
    return sum(sum(cpu_seconds(pid)) for pid in pids)


def deliveries() -> Iterator[Delivery]:
    """Yields what each arrangement delivers at rising rates, up to the first one with which it does not keep up."""
    for processes, chips in ((1, 1), (1, CHIPS), (2, 1)):
        for wanted in RATES:
            found = deliver(processes, chips, wanted)
            print(json.dumps(asdict(found)), flush=True)
            yield found
            if not found.keeps_up:
                break


def caches() -> Iterator[dict[str, Any]]:
    """Yields memory and hits of one process over four chips, and of four processes, with the same requests."""
    load = steady(LOAD, offered(CHIPS), 4 * SECONDS, seed=11)
    whole = replace(CHIP, slots=CHIPS * CHIP.slots, prefill_tokens_per_s=CHIPS * CHIP.prefill_tokens_per_s)
    for name, count, chip, gib, picks in (
        ("one process", 1, whole, CACHE_GIB, "first"),
        ("four, in turn", CHIPS, CHIP, CACHE_GIB / CHIPS, "in turn"),
        ("four, scores of the endpoint picker", CHIPS, CHIP, CACHE_GIB / CHIPS, "scores"),
    ):
        options = ["--mesh", f"data={CHIPS}"] if count == 1 else []
        with serving(count, chip, gib, options) as servers:
            found = of_run(run_load(servers, LOAD, load, picks=picks))
            memory = sum(server.resident_bytes for server in servers) / 1e6
        print(name, json.dumps(found), flush=True)
        yield {"name": name, "memory_mb": memory, **found}


def page(found: Sequence[Delivery], cached: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """Returns the page for readers."""
    parts = [
        "# Several chips on a host",
        "    python tools/fleet/host_chips.py --results benchmarks/host_chips.md",
        f"{where(facts)}; {facts['date']}, tree {facts['tree']}.",
        "## How fast a front end is",
        paragraph(
            f"""{STREAMS} chat streams on simulated devices, at rates of all chips together. A front end keeps
            up if {100 * KEEPS_UP:.0f} % of the tokens come as events of their own. The client shares the cores."""
        ),
        table(
            ["processes", "chips of each", "tokens/s", "events/s", "µs per event", "keeps up"],
            [_delivery_row(each) for each in found],
        ),
        "## What a cache for each process costs",
        paragraph(
            f"""{CHIPS} chips with {CHIP.slots} slots each, {CACHE_GIB:g} GiB of prefix cache together, and the
            requests of [the fleet](fleet.md). Memory is what processes have of their own, without snapshots,
            which hold nothing here."""
        ),
        table(["", "memory, MB", "hits", "first token p50, ms", "p99, ms"], [_cache_row(each) for each in cached]),
    ]
    return "\n\n".join(parts) + "\n"


def _delivery_row(found: Delivery) -> list[str]:
    numbers = [f"{found.wanted:,.0f}", f"{found.events:,.0f}", f"{found.cpu_us:.1f}"]
    return [str(found.processes), str(found.chips), *numbers, "yes" if found.keeps_up else "no"]


def _cache_row(found: Mapping[str, Any]) -> list[str]:
    times = (f"{1e3 * found[name]:,.0f}" for name in ("ttft_p50_s", "ttft_p99_s"))
    return [found["name"], f"{found['memory_mb']:,.0f}", f"{100 * found['hit_share']:.0f} %", *times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, metavar="FILE.md", help="a page")
    options = parser.parse_args()
    facts = {**machine(), "date": now()[:10], "tree": commit()}
    found, cached = list(deliveries()), list(caches())
    text = page(found, cached, facts)
    print(text)
    if options.results is not None:
        options.results.write_text(text)


if __name__ == "__main__":
    main()
