"""Measures batches beside a client that sends the same lines, and what a batch beneath them costs interactive streams.

    python benchmarks/batches.py [--only demo small] [--rounds 3] [--seconds 10] [--results benchmarks/batches.md]

The server is `roost serve` with its defaults, a database in SQLite and room for all lines in its queue. The ways to run
lines take turns:

- a client sends every line at once over HTTP, on as many connections, and reads every response;
- the server runs the same lines as a batch: the time is that from the upload to the downloaded output;
- `roost batch --url` sends them to the server;
- `roost batch` runs them on a model in its own process.

The command's time is that of its own report: from the moment at which it has read the input and a server or its model
is ready.

Lines are prompts of token ids: groups of lines with a common prefix, in random order. They generate different numbers
of tokens, all of which count. Each run has a `cache_salt` of its own, so that none finds what another one has cached.

Then streams of chats' lengths follow each other on four connections, for some seconds without and with a batch beneath
them, in turn. Exits with 1 if a batch has less than 0.97 of the client's tokens per second, or if the p99 of the time
between two events of a stream is more than 1.2 times that without a batch.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import served
from results_page import commit, table
from roost.server.client import Address, HttpClient
from roost.server.commands.bench.report import machine, now, percentile

sys.path.append(str(Path(__file__).resolve().parent / "peers"))

from models import SMALL

URL: Final = "/v1/completions"
MIN_SPEED: Final = 0.97
MAX_GAP: Final = 1.2
STREAMS: Final = 4
STREAM_PROMPT, STREAM_TOKENS = 96, 48
SETTLE_S: Final = 60.0
LOCAL: Final = "roost batch, in its own process"

type Run = Callable[[Sequence[bytes]], Awaitable[float]]
"""Runs lines, and returns its seconds."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Lines for a model.

    Attributes:
      model: Arguments of `roost` that name the model.
      num_lines: Number of lines.
      vocab_size: Number of token ids to draw from.
      shared, own: Tokens of the prompt that a group's lines have in common, and that a line has for itself.
      group: Number of lines of a group.
      new: Least and largest number of generated tokens; their logarithms are uniform.
    """

    model: Sequence[str]
    num_lines: int
    vocab_size: int
    shared: int = 128
    own: int = 48
    group: int = 20
    new: tuple[int, int] = (8, 64)

    def lines(self, salt: str) -> list[bytes]:
        """Returns the lines, which are the same but for the salt."""
        draw = random.Random(1)
        prefixes = [self._tokens(draw, self.shared) for _ in range(-(-self.num_lines // self.group))]
        return [self._line(draw, f"{number}", draw.choice(prefixes), salt) for number in range(self.num_lines)]

    def stream_body(self, draw: random.Random) -> dict[str, Any]:
        """Returns the body of an interactive request."""
        prompt = self._tokens(draw, STREAM_PROMPT)
        return {"prompt": prompt, "max_tokens": STREAM_TOKENS, "ignore_eos": True, "stream": True}

    def _line(self, draw: random.Random, name: str, prefix: list[int], salt: str) -> bytes:
        low, high = self.new
        new = round(low * (high / low) ** draw.random())
        sampling = {"max_tokens": new, "ignore_eos": True, "seed": draw.randrange(1000)}
        body = {"prompt": prefix + self._tokens(draw, self.own), **sampling, "cache_salt": salt}
        line = {"custom_id": name, "method": "POST", "url": URL, "body": body}
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)

    def _tokens(self, draw: random.Random, length: int) -> list[int]:
        return [draw.randrange(10, self.vocab_size) for _ in range(length)]


def workloads(folder: Path) -> Mapping[str, Workload]:
    """Returns all workloads; `small` has random weights and int8 matrices."""
    config = folder / "small" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps(SMALL.hf_config("bfloat16")))
    return {
        "demo": Workload(["demo"], 2000, 300),
        "small": Workload([f"random:{config}", "--quantize", "int8"], 200, 30_000),
    }


# --- one run of all lines


class Server:
    """A running server, and the ways to run lines on it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = HttpClient(Address.parse(url), timeout_s=3600)
        self._api = httpx.AsyncClient(base_url=url, timeout=120)

    async def close(self) -> None:
        await self._http.close()
        await self._api.aclose()

    async def client(self, lines: Sequence[bytes]) -> float:
        """Sends all lines at once, and closes its connections at the end."""
        bodies = [orjson.Fragment(orjson.dumps(orjson.loads(line)["body"])) for line in lines]
        http = HttpClient(Address.parse(self.url), timeout_s=3600)
        began = time.perf_counter()
        await asyncio.gather(*(self._send(http, body) for body in bodies))
        seconds = time.perf_counter() - began
        await http.close()
        return seconds

    async def _send(self, http: HttpClient, body: orjson.Fragment) -> None:
        pieces: list[bytes] = []
        response = await http.post(URL, body, lambda piece, _: pieces.append(piece))
        if response.status != 200:
            raise RuntimeError(f"a line of the client got {response.status}: {response.body!r}")

    async def batch(self, lines: Sequence[bytes]) -> float:
        """Uploads a file, runs it as a batch, and downloads its output."""
        began = time.perf_counter()
        batch_id = await self.begin_batch(await self.upload(lines))
        batch = await self._ended(batch_id, began)
        output = (await self._api.get(f"/v1/files/{batch['output_file_id']}/content")).content
        seconds = time.perf_counter() - began
        if output.count(b"\n") != len(lines):
            raise RuntimeError(f"the batch has {output.count(b'\n')} responses: {batch}")
        return seconds

    async def _ended(self, batch_id: str, began: float) -> dict[str, Any]:
        """Returns a batch that has ended.

        It looks ever more often towards the end, as each look takes time of the cores.
        """
        while (batch := (await self._api.get(f"/v1/batches/{batch_id}")).json())["status"] == "in_progress":
            done, total = (batch["request_counts"][name] for name in ("completed", "total"))
            left_s = (time.perf_counter() - began) * (total - done) / max(done, 1)
            await asyncio.sleep(min(max(left_s / 2, 0.05), 1.0))
        return dict(batch)

    async def upload(self, lines: Sequence[bytes]) -> str:
        """Returns the id of a new file."""
        files = {"file": ("in.jsonl", b"".join(lines))}
        response = await self._api.post("/v1/files", files=files, data={"purpose": "batch"})
        return str(response.raise_for_status().json()["id"])

    async def begin_batch(self, file_id: str) -> str:
        """Returns the id of a new batch."""
        body = {"input_file_id": file_id, "endpoint": URL, "completion_window": "24h"}
        return str((await self._api.post("/v1/batches", json=body)).raise_for_status().json()["id"])

    async def cancel(self, batch_ids: Sequence[str]) -> None:
        """Ends batches, and waits until the server is idle."""
        for batch_id in batch_ids:
            await self._api.post(f"/v1/batches/{batch_id}/cancel")
        deadline = time.monotonic() + SETTLE_S
        while await self.num_lines_running():
            if time.monotonic() > deadline:
                raise RuntimeError("lines of cancelled batches still run")
            await asyncio.sleep(0.1)

    async def num_lines_running(self) -> int:
        """Returns the number of lines that have a slot."""
        page = (await self._api.get("/metrics")).text
        found = re.search(r"^roost_batch_requests_running (\S+)$", page, re.MULTILINE)
        assert found is not None
        return int(float(found[1]))

    async def command(self, lines: Sequence[bytes]) -> float:
        """Runs `roost batch --url`."""
        return await run_command(lines, ["--url", self.url])

    async def stream_gaps(self, workload: Workload, seconds: float, seed: int) -> list[float]:
        """Returns the seconds between two events of streams that follow each other on some connections."""
        until, gaps = time.perf_counter() + seconds, list[float]()
        await asyncio.gather(*(self._talk(workload, until, gaps, seed * STREAMS + each) for each in range(STREAMS)))
        return gaps

    async def _talk(self, workload: Workload, until: float, gaps: list[float], seed: int) -> None:
        draw = random.Random(seed)
        while time.perf_counter() < until:
            times: list[float] = []
            body = workload.stream_body(draw)
            response = await self._http.post(URL, body, lambda _, at, times=times: times.append(at))
            if response.status != 200:
                raise RuntimeError(f"a stream got {response.status}: {response.body!r}")
            gaps += [after - before for before, after in pairwise(times)]


async def run_command(lines: Sequence[bytes], arguments: Sequence[str]) -> float:
    """Runs `roost batch`; returns the seconds of the lines by its summary, without those of its start."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        source.write_bytes(b"".join(lines))
        command = [sys.executable, "-P", "-m", "roost.server", "batch", str(source), str(output), *arguments]
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        _, err = await process.communicate()
        if process.returncode or output.read_bytes().count(b'"status_code":200') != len(lines):
            raise RuntimeError(err.decode())
    summary = err.decode().strip().splitlines()[-1]
    found = re.search(r"and ([\d,]+) generated, ([\d,]+) per second", summary)
    assert found is not None, summary
    generated, speed = (int(number.replace(",", "")) for number in found.groups())
    return generated / speed


def serving(workload: Workload, folder: Path) -> AbstractContextManager[str]:
    """Returns the context of a server of a workload; see `served.serving`."""
    options = ["--store", f"sqlite:///{folder / 'store.db'}", "--max-queue", "4096", "--access-log", "off"]
    return served.serving(folder / "log", *workload.model, *options)


# --- rounds


@dataclass(frozen=True, slots=True)
class Figures:
    """Results of a workload.

    Attributes:
      num_tokens: Number of generated tokens of all lines.
      seconds: Seconds of each round, by way of running the lines.
      gaps: p99 of the seconds between two events in each round, without and with a batch.
    """

    workload: Workload
    num_tokens: int
    seconds: Mapping[str, Sequence[float]]
    gaps: Sequence[tuple[float, float]]

    def speed(self, way: str) -> float:
        """Returns the median tokens per second."""
        return self.num_tokens / statistics.median(self.seconds[way])

    def ratio(self, way: str) -> float:
        """Returns the median over the rounds of the client's seconds by those of a way."""
        pairs = zip(self.seconds["client"], self.seconds[way], strict=True)
        return statistics.median(client / other for client, other in pairs)

    @property
    def gap_ratio(self) -> float:
        """Median over the rounds of the p99 with a batch by that without."""
        return statistics.median(beneath / alone for alone, beneath in self.gaps)

    def missed(self) -> list[str]:
        """Returns the goals that were missed."""
        slow = [way for way in self.seconds if way != "client" and self.ratio(way) < MIN_SPEED]
        found = [f"{way}: {self.ratio(way):.3f} of the client's tokens per second" for way in slow]
        if self.gaps and self.gap_ratio > MAX_GAP:
            found.append(f"p99 between tokens: {self.gap_ratio:.2f} times that without a batch")
        return found


async def measure(name: str, workload: Workload, options: argparse.Namespace) -> Figures:
    """Measures a workload, in rounds."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        server = Server(stack.enter_context(serving(workload, Path(folder))))
        salts = map(str, count())
        await server.client(workload.lines(next(salts))[:100])  # loads what the first requests load
        ways: dict[str, Run] = {"client": server.client, "server's batch": server.batch}
        if not options.server_only:
            ways["roost batch --url"] = server.command
            ways[LOCAL] = lambda lines: run_command(lines, ["--model", *workload.model])
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        lines = workload.lines("")
        num_tokens = sum(orjson.loads(line)["body"]["max_tokens"] for line in lines)
        for turn in range(options.rounds):
            for way, run in ways.items():
                seconds[way].append(await run(workload.lines(next(salts))))
                say(f"{name}, round {turn + 1}, {way}: {num_tokens / seconds[way][-1]:,.0f} tokens/s")
        gaps = []
        for turn in range(options.rounds if options.seconds else 0):
            alone, beneath = await _gaps(server, workload, options.seconds, turn)
            gaps.append((alone, beneath))
            say(f"{name}, round {turn + 1}: p99 between tokens {alone * 1e3:.1f} ms alone, {beneath * 1e3:.1f} beneath")
        await server.close()
    return Figures(workload, num_tokens, seconds, gaps)


async def _gaps(server: Server, workload: Workload, seconds: float, turn: int) -> tuple[float, float]:
    """Returns the p99 between two events without and with a batch."""
    alone = await server.stream_gaps(workload, seconds, 2 * turn)
    file_id = await server.upload(workload.lines(f"beneath {turn}"))
    batches = [await server.begin_batch(file_id) for _ in range(8)]  # more lines than run in that time
    while not await server.num_lines_running():  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    beneath = await server.stream_gaps(workload, seconds, 2 * turn + 1)
    await server.cancel(batches)
    return percentile(sorted(alone), 99), percentile(sorted(beneath), 99)


def page(found: Mapping[str, Figures], options: argparse.Namespace) -> str:
    """Returns the page of results."""
    here, arguments = machine(), f"--rounds {options.rounds} --seconds {options.seconds:g}"
    speed = [
        [name, way, f"{figures.speed(way):,.0f}", f"{figures.ratio(way):.2f}"]
        for name, figures in found.items()
        for way in figures.seconds
    ]
    gaps = [
        [
            name,
            *(f"{statistics.median(pair[each] for pair in figures.gaps) * 1e3:.1f}" for each in (0, 1)),
            f"{figures.gap_ratio:.2f}",
        ]
        for name, figures in found.items()
        if figures.gaps
    ]
    missed = "; ".join(f"{name}: {what}" for name, figures in found.items() for what in figures.missed())
    return f"""# Batches beside a client that sends the same lines

    python benchmarks/batches.py {arguments} --results benchmarks/batches.md

{here["cpu"]}, {here["cpus"]} cores. {now()[:10]}, tree {commit()}. The demo model runs 2,000 lines; `small` (random
weights, int8 matrices) 200. The client sends all of them at once; client and server share the cores. `roost batch`
counts from the moment at which a server or its model is ready. Medians over the rounds, in which the ways take turns;
a ratio is one within a round.

{table(("model", "lines sent by", "generated tokens/s", "of the client's"), speed)}

Four streams of {STREAM_PROMPT} + {STREAM_TOKENS} tokens at a time, one after the other, alone and with a batch
beneath them:

{table(("model", "p99 between tokens alone, ms", "with a batch, ms", "ratio"), gaps)}

The goals are {MIN_SPEED} of the client's speed at least, and a ratio of {MAX_GAP} at most. Missed: {missed or "none"}.
"""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("demo", "small"), default=("demo", "small"), help="models (both)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds (3)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, metavar="S", help="of streams at a time (10); 0 has none"
    )
    parser.add_argument("--server-only", action="store_true", help="leave roost batch out")
    parser.add_argument("--results", type=Path, metavar="FILE.md", help="write a page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        known = workloads(Path(folder))
        found = {name: asyncio.run(measure(name, known[name], options)) for name in options.only}
    text = page(found, options)
    print(text)
    if options.results:
        options.results.write_text(text)
    missed = [f"{name}: {goal}" for name, figures in found.items() for goal in figures.missed()]
    for goal in missed:
        say(f"MISSED {goal}")
    return bool(missed)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
