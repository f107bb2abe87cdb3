"""Measures what durable responses cost. Writes benchmarks/durable.md with `--results`.

    python benchmarks/durable.py [--rounds 5] [--tokens 2048] [--requests 32] [--model demo] [--results]

Servers of one model, with the defaults of `roost serve`, run side by side and get the same load in turns: one with
responses in memory, one with SQLite and one with a PostgreSQL of the benchmark's own, which waits for its disk. The
latter two also take checkpoints. A load is a number of requests that begin together; its speed is all of their tokens
divided by the time until a client has seen the last one end.

- Ordinary requests (`store: false`) with a database, against those of the server without: at least 98 %.
- Background responses against ordinary requests of the same server: at least 95 %.
- Responses in the foreground that are stored at their end (`store: true`), for comparison.

Shares are medians over rounds of the quotient within a round, so that a machine that changes its speed matters little.
Where PostgreSQL is not installed, SQLite is measured alone.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import served
from results_page import commit
from rich.console import Console
from roost.server.commands.bench.report import machine, now, versions

HERE: Final = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests"))

from databases import postgresql_program, postgresql_server  # noqa: E402 - the tests' PostgreSQL

POLL_S: Final = 0.05
REQUEST_S: Final = 3600.0
PROMPT: Final = "Once upon a time there was a little boat."

STORE_GOAL, BACKGROUND_GOAL = 0.98, 0.95


class Row(NamedTuple):
    """Speed of one kind of load.

    Attributes:
      load: Kind of load, and the server's store.
      tokens_per_s: Median over rounds.
      share: Median over rounds of its speed divided by another load's of the same round; None without one.
      of: Name of that load.
      goal: Share that is wanted; None for what is only reported.
    """

    load: str
    tokens_per_s: float
    share: float | None
    of: str
    goal: float | None


# --- servers


@contextmanager
def serving(folder: Path, model: str, *arguments: str) -> Iterator[httpx.Client]:
    """Yields a client of a server that is ready."""
    with (
        served.serving(folder / "stderr", model, "--access-log", "off", *arguments) as url,
        httpx.Client(base_url=url, timeout=REQUEST_S, limits=httpx.Limits()) as client,
    ):
        yield client


def stores(stack: ExitStack, folder: Path) -> dict[str, str]:
    """Returns the address of each store by its name."""
    found = {"memory": "memory:", "SQLite": f"sqlite:///{folder / 'responses.db'}"}
    if postgresql_program("initdb") is not None:
        found["PostgreSQL"] = stack.enter_context(postgresql_server(waits_for_disk=True)).url
    return found


# --- loads


def generate(client: httpx.Client, tokens: int, number: int, **fields: Any) -> dict[str, Any]:
    """Sends a request for a number of tokens, and returns the response."""
    body = {"input": PROMPT, "max_output_tokens": tokens, "ignore_eos": True, "seed": number, **fields}
    return client.post("/v1/responses", json=body).raise_for_status().json()


def run_ordinary(client: httpx.Client, requests: int, tokens: int, *, store: bool) -> int:
    """Runs requests in the foreground together, and returns the number of their tokens."""
    with ThreadPoolExecutor(requests) as threads:
        responses = threads.map(lambda number: generate(client, tokens, number, store=store), range(requests))
        return sum(num_tokens(each) for each in responses)


def run_background(client: httpx.Client, requests: int, tokens: int) -> int:
    """Starts background responses together, and returns the number of their tokens once all have ended.

    One after the other is polled: a client for each that polls would be a load of its own.
    """
    with ThreadPoolExecutor(requests) as threads:
        started = threads.map(lambda number: generate(client, tokens, number, background=True), range(requests))
        return sum(num_tokens(ended(client, each["id"])) for each in list(started))


def ended(client: httpx.Client, response_id: str) -> dict[str, Any]:
    """Returns a background response once it has ended."""
    while True:
        response: dict[str, Any] = client.get(f"/v1/responses/{response_id}").raise_for_status().json()
        if response["status"] != "in_progress":
            return response
        time.sleep(POLL_S)


def num_tokens(response: Mapping[str, Any]) -> int:
    return int(response["usage"]["output_tokens"])


def tokens_per_s(run: Callable[[], int]) -> float:
    """Returns the speed of a load."""
    start = time.perf_counter()
    return run() / (time.perf_counter() - start)


def loads(clients: Mapping[str, httpx.Client], requests: int, tokens: int) -> dict[str, Callable[[], int]]:
    """Returns all loads by their names, in the order in which a round runs them."""
    found: dict[str, Callable[[], int]] = {}
    for name, client in clients.items():
        found[f"ordinary, {name}"] = partial(run_ordinary, client, requests, tokens, store=False)
    for name, client in clients.items():
        if name != "memory":
            found[f"stored, {name}"] = partial(run_ordinary, client, requests, tokens, store=True)
            found[f"background, {name}"] = partial(run_background, client, requests, tokens)
    return found


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Returns the tokens per second of each kind of load, by rounds. A round before them warms up."""
    with ExitStack() as stack:
        clients = {}
        for name, url in stores(stack, folder).items():
            own = folder / name
            own.mkdir()
            durable = () if name == "memory" else ("--store", url, "--state-store", str(own / "checkpoints"))
            clients[name] = stack.enter_context(serving(own, options.model, *durable))
        kinds = loads(clients, options.requests, options.tokens)
        for run in loads(clients, options.requests, 32).values():
            run()
        rates: dict[str, list[float]] = {name: [] for name in kinds}
        for each in range(options.rounds):
            for name, run in kinds.items():
                rates[name].append(tokens_per_s(run))
                print(f"round {each + 1}: {name}: {rates[name][-1]:.0f} tokens/s", file=sys.stderr)
    return rates


# --- the page


def rows(rates: Mapping[str, Sequence[float]]) -> list[Row]:
    """Returns the speeds and shares of all loads."""
    found = []
    for load, speeds in rates.items():
        kind, _, store = load.partition(", ")
        of = "ordinary, memory" if kind == "ordinary" else f"ordinary, {store}"
        goals = {"ordinary": STORE_GOAL, "background": BACKGROUND_GOAL}
        share = None if of == load else statistics.median(a / b for a, b in zip(speeds, rates[of], strict=True))
        goal = None if share is None else goals.get(kind)
        found.append(Row(load, statistics.median(speeds), share, "" if share is None else of, goal))
    return found


def table(found: Sequence[Row]) -> Iterator[str]:
    """Yields the lines of the table."""
    yield "| load | tokens/s | share | of | goal |"
    yield "| --- | ---: | ---: | --- | ---: |"
    for row in found:
        share = "" if row.share is None else f"{100 * row.share:.1f} %"
        goal = "" if row.goal is None else f"{100 * row.goal:.0f} %"
        yield f"| {row.load} | {row.tokens_per_s:.0f} | {share} | {row.of} | {goal} |"


def page(found: Sequence[Row], options: argparse.Namespace, busy: float) -> str:
    facts, packages = machine(), versions()
    return "\n".join(
        [
            "# What durable responses cost",
            "",
            "    python benchmarks/durable.py --results",
            "",
            f"**How**: {options.requests} requests of {options.tokens} tokens begin together, on servers of "
            f"`{options.model}` with the defaults of",
            "`roost serve`, in turns. `ordinary` requests have `store: false`; `stored` ones are stored at their end;",
            "`background` ones are durable from before their first token, and have checkpoints. PostgreSQL and SQLite",
            "wait for their disk at each commit.",
            "",
            f"**Measured** on {now()[:10]} with tree {commit()}, on {facts['cpus']} CPUs of {facts['cpu']}, "
            f"jax {packages['jax']};",
            f"load average {busy:.1f} before. Medians of {options.rounds} rounds; shares are medians of a round's.",
            "",
            *table(found),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", action="store_true", help="write benchmarks/durable.md")
    options = parser.parse_args()
    busy = machine()["load_average"]
    with tempfile.TemporaryDirectory() as folder:
        found = rows(measure(options, Path(folder)))
    if options.results:
        (HERE / "durable.md").write_text(page(found, options, busy))
    else:
        Console().print("\n".join(table(found)), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
