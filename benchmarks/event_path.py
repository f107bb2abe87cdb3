"""Measures the processor time of a streamed event: Roost on a simulated device, beside uvicorn and Starlette alone.

    python benchmarks/event_path.py --step-ms 20 --results benchmarks/event_path.md

Each round starts both servers, one after the other, with the same number of streams and the same pace. The bare server
sends one of Roost's own events again and again: each of its streams waits for the next step, and yields the event. Time
is that of all threads of the server's process, user and system, from the moment at which every stream has had an event.
It is processor time, so a busy machine is tolerable, as long as an event has one token: a server that falls behind
joins the tokens of several steps into one event.

Then a chip of 52,245 tokens/s is served to 512 streams for a minute. That part needs two quiet cores. Both take five
minutes.
"""

import argparse
import asyncio
import json
import os
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import uvicorn
from results_page import commit, paragraph, table, where
from roost.server.commands.bench.report import machine, now
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

TICKS: Final = os.sysconf("SC_CLK_TCK")
MODEL: Final = "random:2b"
READY_WITHIN_S: Final = 120.0
READ_BYTES: Final = 16_384
READ_EVERY_S: Final = 0.005
"""Seconds between two rounds of reading, so that the client does not preempt the server at each event."""

CHIP_STEP_MS: Final = 9.8
CHIP_PREFILL: Final = 40_000.0
CHIP_STREAMS: Final = 512
"""Decode step, prompt tokens per second, and streams of the chip whose tokens are all delivered."""

CHIP_PARTS: Final = 6
"""Number of equal parts of the chip's time, so that a backlog shows."""

PATHS: Final = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


class Cost(NamedTuple):
    """What a server's streams took.

    Attributes:
      user_us, system_us: User and system time of the server's process per event, in microseconds.
      events_per_s: Events of all streams together per second.
      event: One of the events, with the empty line after it.
    """

    user_us: float
    system_us: float
    events_per_s: float
    event: bytes


# --- the bare server


class Ticker:
    """Lets all waiting streams go on at once, at a pace.

    Args:
      seconds: Time between two steps.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next: asyncio.Future[None] | None = None

    def next(self) -> "asyncio.Future[None]":
        """Returns a future of the next step."""
        if self._next is None:
            loop = asyncio.get_running_loop()
            self._next = loop.create_future()
            loop.call_at(self._seconds * (loop.time() // self._seconds + 1), self._tick)
        return self._next

    def _tick(self) -> None:
        assert self._next is not None
        self._next.set_result(None)
        self._next = None


def serve_bare(port: int, event: bytes, step_ms: float) -> None:
    """Serves endless streams of one event with uvicorn and Starlette alone."""
    ticker = Ticker(step_ms / 1e3)

    async def events() -> AsyncGenerator[bytes]:
        while True:
            await ticker.next()
            yield event

    async def stream(_: Request) -> Response:
        return StreamingResponse(events(), media_type="text/event-stream")

    async def ready(_: Request) -> Response:
        return Response("ready")

    routes = [Route(path, stream, methods=["POST"]) for path in PATHS.values()]
    app = Starlette(routes=[*routes, Route("/health/ready", ready)])
    uvicorn.run(app, port=port, log_level="critical", access_log=False, ws="none", lifespan="off", backlog=2048)


# --- servers as processes


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def running(command: list[str], port: int) -> Iterator[int]:
    """Yields the id of a server's process once it is ready."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_until_ready(process, port)
            yield process.pid
        except Exception:
            log.seek(0)
            sys.stderr.write(log.read().decode())
            raise
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def roost_command(port: int, streams: int, step_ms: float, options: list[str], prefill: float = 1e7) -> list[str]:
    pace = f"step_ms={step_ms},prefill_tokens_per_s={prefill:g}"
    fixed = ["--simulate", pace, "--slots", str(streams), "--max-queue", str(streams), "--port", str(port)]
    return [sys.executable, "-P", "-m", "roost.server", "serve", MODEL, *fixed, *options]


def bare_command(port: int, event: Path, step_ms: float) -> list[str]:
    return [sys.executable, __file__, "--bare", str(event), "--port", str(port), "--step-ms", str(step_ms)]


# --- the client


def cpu_seconds(pid: int) -> tuple[float, float]:
    """Returns the user time and the system time of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) / TICKS, int(fields[12]) / TICKS


def body(api: str, number: int) -> dict[str, Any]:
    """Returns a request whose stream does not end while it is measured."""
    messages = [{"role": "user", "content": f"Hello, {number}."}]
    asked = {"messages": messages} if api == "chat" else {"prompt": f"Hello, {number}."}
    return {**asked, "stream": True, "temperature": 0, "ignore_eos": True, "max_tokens": 10**6}


class Client:
    """Open streams, read with as little work as possible.

    Attributes:
      num_events: Number of events of all streams so far.
      last: Last bytes that were received.
    """

    def __init__(self, port: int, api: str, streams: int) -> None:
        self.num_events = 0
        self.last = b""
        self._streams = streams
        self._selector = selectors.EpollSelector()
        self._silent = set(range(streams))
        for number in range(streams):
            self._open(port, api, number)

    def _open(self, port: int, api: str, number: int) -> None:
        content = json.dumps(body(api, number)).encode()
        head = f"POST {PATHS[api]} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        self._selector.register(connection, selectors.EVENT_READ, number)

    def read(self, seconds: float) -> None:
        """Reads all streams for some seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._read_ready()

    def read_until_all_speak(self) -> None:
        """Reads until each stream has had a token."""
        deadline = time.monotonic() + READY_WITHIN_S
        while self._silent:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(self._silent)} streams had no event within {READY_WITHIN_S:g} s")
            self._read_ready()

    def count_alive(self, seconds: float) -> int:
        """Reads for some seconds; returns the number of streams that had an event in them."""
        self._silent = set(range(self._streams))
        self.read(seconds)
        return self._streams - len(self._silent)

    def _read_ready(self) -> None:
        time.sleep(READ_EVERY_S)
        for key, _ in self._selector.select(0):
            assert isinstance(key.fileobj, socket.socket)
            data = key.fileobj.recv(READ_BYTES)
            if not data:
                raise ConnectionError(f"stream {key.data} ended: {self.last!r}")
            self.last = data
            if found := data.count(b"data: {"):
                self.num_events += found
                self._silent.discard(key.data)

    def an_event(self) -> bytes:
        """Returns one whole event."""
        while True:
            start, end = self.last.find(b"data: {"), self.last.find(b"\n\n")
            if 0 <= start < end:
                return self.last[start : end + 2]
            self.read(0.01)

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()


def measure(command: list[str], port: int, api: str, streams: int, seconds: float) -> Cost:
    """Returns the cost of a server's streams."""
    with running(command, port) as pid:
        client = Client(port, api, streams)
        client.read_until_all_speak()
        client.read(1.0)
        start, before, events = time.monotonic(), cpu_seconds(pid), client.num_events
        client.read(seconds)
        num_events = client.num_events - events
        user, system = (1e6 * (now - then) / num_events for now, then in zip(cpu_seconds(pid), before, strict=True))
        cost = Cost(user, system, num_events / (time.monotonic() - start), client.an_event())
        client.close()
        return cost


class Part(NamedTuple):
    """A part of the time for which a chip was served.

    Attributes:
      made_per_s: Tokens per second that the server generated.
      events_per_s: Events per second that the client received.
      server_cores, client_cores: Cores that the two processes used.
    """

    made_per_s: float
    events_per_s: float
    server_cores: float
    client_cores: float


class ChipDelivery(NamedTuple):
    """What the streams of a chip got.

    Attributes:
      parts: Equal parts of the time.
      alive: Number of streams that had an event in the second after it.
    """

    parts: Sequence[Part]
    alive: int


def serve_chip(seconds: float) -> ChipDelivery:
    """Serves a chip whose every slot has a stream.

    Args:
      seconds: Seconds of each part.
    """
    port = free_port()
    command = roost_command(port, CHIP_STREAMS, CHIP_STEP_MS, [], CHIP_PREFILL)
    with running(command, port) as pid:
        client = Client(port, "chat", CHIP_STREAMS)
        client.read_until_all_speak()
        client.read(2.0)
        parts, before = [], _counts(port, pid, client)
        for _ in range(CHIP_PARTS):
            client.read(seconds)
            now = _counts(port, pid, client)
            took = now["time"] - before["time"]
            made, events, server, own = (
                (now[name] - before[name]) / took for name in ("tokens", "events", "server", "client")
            )
            parts.append(Part(made, events, server, own))
            before = now
        found = ChipDelivery(parts, client.count_alive(1.0))
        client.close()
        return found


def _counts(port: int, pid: int, client: Client) -> Mapping[str, float]:
    """Returns the time, and what server and client have counted."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        page = response.read().decode()
    (tokens,) = re.findall(r"^roost_generation_tokens_total (\S+)$", page, re.MULTILINE)
    return {
        "time": time.monotonic(),
        "tokens": float(tokens),
        "events": client.num_events,
        "server": sum(cpu_seconds(pid)),
        "client": time.process_time(),
    }


class Comparison(NamedTuple):
    """Costs of each round.

    Attributes:
      api: One of `PATHS`.
      roost, bare: Costs of the two servers.
    """

    api: str
    roost: Sequence[Cost]
    bare: Sequence[Cost]


def compare(api: str, options: argparse.Namespace) -> Comparison:
    """Measures both servers in turn."""
    roost, bare = [], []
    with tempfile.TemporaryDirectory() as folder:
        event = Path(folder) / "event"
        for _ in range(options.rounds):
            port = free_port()
            command = roost_command(port, options.streams, options.step_ms, options.serve)
            roost.append(measure(command, port, api, options.streams, options.seconds))
            event.write_bytes(roost[-1].event)
            port = free_port()
            command = bare_command(port, event, options.step_ms)
            bare.append(measure(command, port, api, options.streams, options.seconds))
    return Comparison(api, roost, bare)


def costs_table(found: Sequence[Comparison]) -> str:
    """Returns the medians of all rounds in Markdown."""
    rows = []
    for api, roost, bare in found:
        for name, costs in (("Roost", roost), ("uvicorn and Starlette", bare)):
            totals = [cost.user_us + cost.system_us for cost in costs]
            system = statistics.median(cost.system_us for cost in costs)
            rate = statistics.median(cost.events_per_s for cost in costs)
            rounds = ", ".join(f"{total:.1f}" for total in totals)
            rows.append([api, name, f"{statistics.median(totals):.1f}", f"{system:.1f}", rounds, f"{rate:,.0f}"])
    return table(["API", "server", "µs per event", "of them in the system", "rounds", "events/s"], rows)


def chip_table(chip: ChipDelivery) -> str:
    """Returns a row for each part of the time in Markdown."""
    wanted, rows = 1e3 * CHIP_STREAMS / CHIP_STEP_MS, []
    for number, part in enumerate(chip.parts, 1):
        counts = [f"{part.made_per_s:,.0f}", f"{part.events_per_s:,.0f}", f"{100 * part.events_per_s / wanted:.1f} %"]
        rows.append([str(number), *counts, f"{part.server_cores:.2f}", f"{part.client_cores:.2f}"])
    return table(["part", "tokens/s made", "events/s", "share of the chip's", "server, cores", "client, cores"], rows)


def page(found: Sequence[Comparison], chip: ChipDelivery, options: argparse.Namespace, facts: Mapping[str, Any]) -> str:
    """Returns the page for readers."""
    wanted, size = options.streams / options.step_ms * 1e3, len(found[0].roost[0].event)
    parts = [
        "# Processor time of a streamed event",
        f"    python benchmarks/event_path.py --step-ms {options.step_ms:g} --results benchmarks/event_path.md",
        paragraph(
            f"""{options.streams} streams on a simulated device that makes {wanted:,.0f} tokens/s, an event of
            about {size} bytes for each token; beside uvicorn and Starlette alone, which send the same bytes at
            the same pace. Processor time of the server's process, all threads, user and system; medians of
            {options.rounds} rounds of {options.seconds:g} s."""
        ),
        costs_table(found),
        paragraph(
            f"""{where(facts)}; {facts["date"]}, tree {facts["tree"]}. Other work on the cores makes all rows
            larger, as the objects of all streams no longer stay in the caches."""
        ),
        paragraph(
            """What makes an event cheap: a token of text is written to its connection while its output is
            delivered, so that no task wakes for it, and it passes neither middleware nor the coroutines of
            `send`. Its event is made of bytes that are encoded once per choice, around the text. Histograms of
            latencies take no locks. Results of a step are booked without values for each row that carry
            nothing, and a token of ASCII text passes the detokenizer at once. Neither an output nor its text is
            an object with many fields: most events need none of them."""
        ),
        "## All tokens of a chip",
        f"    roost serve {MODEL} --simulate step_ms={CHIP_STEP_MS:g},prefill_tokens_per_s={CHIP_PREFILL:g} "
        f"--slots {CHIP_STREAMS}",
        paragraph(
            f"""makes {1e3 * CHIP_STREAMS / CHIP_STEP_MS:,.0f} tokens/s for {CHIP_STREAMS} chat streams. Parts of
            {options.seconds:g} s; the client shares the cores. An event is a token, or the tokens of several steps
            where the server has fallen behind. After the last part, {chip.alive} of the streams had an event within
            a second."""
        ),
        chip_table(chip),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=512)
    parser.add_argument("--step-ms", type=float, default=9.8, help="milliseconds between two events of a stream")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--api", nargs="*", choices=PATHS, default=list(PATHS), help="both; none: the chip alone")
    parser.add_argument("--results", type=Path, metavar="FILE.md", help="a page")
    parser.add_argument("--serve", nargs="*", default=[], metavar="OPTION", help="further options of roost serve")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare is not None:
        serve_bare(options.port, options.bare.read_bytes(), options.step_ms)
        return
    if options.results is not None and not options.api:
        parser.error("--results needs an API: the page has all parts")
    facts = {**machine(), "date": now()[:10], "tree": commit()}
    found = [compare(api, options) for api in options.api]
    print(costs_table(found), flush=True)
    chip = serve_chip(options.seconds)
    print(f"{chip_table(chip)}\n{chip.alive} of {CHIP_STREAMS} streams alive")
    if options.results is not None:
        options.results.write_text(page(found, chip, options, facts))


if __name__ == "__main__":
    main()
