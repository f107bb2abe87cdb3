"""Simulated replicas, proxies and clients as processes of this machine; see fleet.py."""

import asyncio
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from event_path import cpu_seconds, free_port
from fleet_model import Workload
from roost.engine.planning.replicas import Arrival, Chip
from roost.server.client import Address, ClientError, HttpClient, http_failure
from roost.server.commands.bench.serve import StreamRecorder

MODEL: Final = "random:2b"
KEY_HEADER: Final = "x-prefix-key"
"""Header by which proxies choose a replica."""

_READY_S: Final = 120.0
_VOCABULARY: Final = 256_000
_DRAIN_LAG_S: Final = 1.0
"""Seconds in which a draining replica still takes requests; the proxy notices within them that it is not ready."""

SLOT_METRICS: Final = ("vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")


class Server:
    """One `roost serve --simulate`, which may be stopped and started again on its port."""

    def __init__(self, chip: Chip, cache_gib: float, log: Path, options: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.log = log
        pace = f"step_ms={1e3 * chip.step_s:g},prefill_tokens_per_s={chip.prefill_tokens_per_s:g}"
        settings = {
            "port": self.port,
            "simulate": pace,
            "slots": chip.slots,
            "max-queue": chip.max_queue,
            "prefill-chunk": chip.chunk,
            "state-cache-gib": cache_gib,
            "metrics-compat": "vllm",  # which the endpoint picker reads
            "drain-lag": _DRAIN_LAG_S,
            "drain-timeout": 60,
        }
        flags = [f"--{name}={value}" for name, value in settings.items()]
        self._command = [sys.executable, "-P", "-m", "roost.server", "serve", MODEL, *flags, *options]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def cpu_s(self) -> float:
        """Processor time of its process so far."""
        assert self._process is not None
        return sum(cpu_seconds(self._process.pid))

    @property
    def resident_bytes(self) -> int:
        """Memory of its process that no other process shares with it."""
        assert self._process is not None
        text = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text()
        return sum(int(kib) * 1024 for kib in re.findall(r"^Private_\w+:\s+(\d+) kB", text, re.MULTILINE))

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        """Waits until the server is ready.

        Raises:
          RuntimeError: It ended, or took too long.
        """
        assert self._process is not None
        _wait_until_ready(self.url, self._process, self.log)

    def is_ready(self) -> bool:
        return _is_ready(self.url)

    def end(self, signal_number: int) -> None:
        """Sends a signal and waits for the end of the process."""
        if self._process is not None:
            self._process.send_signal(signal_number)
            self._process.wait()
            self._process = None

    def metrics(self) -> dict[str, float]:
        """Returns the server's series by name; of several with one name, their sum."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as response:
            return parse_metrics(response.read().decode())


def _is_ready(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/health/ready", timeout=5).close()
    except OSError:
        return False
    return True


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while not _is_ready(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"`{process.args!r}` did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)


def parse_metrics(page: str) -> dict[str, float]:
    """Returns the sums of the series of each name."""
    found: dict[str, float] = {}
    for name, value in re.findall(r"^([a-z_:]+)(?:\{.*\})? (\S+)$", page, re.MULTILINE):
        found[name] = found.get(name, 0.0) + float(value)
    return found


@contextmanager
def serving(count: int, chip: Chip, cache_gib: float, options: Sequence[str] = ()) -> Iterator[list[Server]]:
    """Yields servers that are ready.

    Args:
      options: Further options of `roost serve`.
    """
    with tempfile.TemporaryDirectory() as folder:
        servers = [Server(chip, cache_gib, Path(folder) / f"{number}.log", options) for number in range(count)]
        try:
            for server in servers:
                server.start()
            for server in servers:
                server.wait_ready()
            yield servers
        finally:
            for server in servers:
                server.end(signal.SIGKILL)


# --- proxies


BALANCES: Final[Mapping[str, Sequence[str]]] = {
    "random": ["balance random(1)"],
    "least connections": ["balance leastconn"],
    "hash of the prefix": [f"balance hdr({KEY_HEADER})", "hash-type consistent"],
    "hash, bounded load": [f"balance hdr({KEY_HEADER})", "hash-type consistent", "hash-balance-factor 125"],
}
"""Ways to choose a replica, and the lines of HAProxy's configuration."""


def haproxy_config(port: int, servers: Sequence[Server], balance: Sequence[str], retries: str) -> str:
    """Returns a configuration of HAProxy, which asks the servers every 0.2 s whether they are ready.

    Args:
      retries: Failures after which the next server gets the request, as in `retry-on`.
    """
    lines = [f"server s{number} 127.0.0.1:{each.port}" for number, each in enumerate(servers)]
    backend = "\n    ".join([*balance, "default-server check inter 200ms fall 2 rise 1", *lines])
    return f"""\
global
    nbthread 1
defaults
    mode http
    option abortonclose
    option http-no-delay
    option redispatch 1
    retries 3
    retry-on {retries}
    timeout connect 5s
    timeout client 600s
    timeout server 600s
frontend api
    bind 127.0.0.1:{port}
    default_backend fleet
backend fleet
    option httpchk GET /health/ready
    {backend}
"""


@contextmanager
def proxying(servers: Sequence[Server], balance: str, retries: str = "conn-failure empty-response") -> Iterator[str]:
    """Yields the address of HAProxy in front of servers.

    Args:
      balance: One of `BALANCES`.
      retries: Failures after which another server gets the request.
    """
    program = shutil.which("haproxy", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    assert program is not None, "HAProxy is not installed"
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        config, log = Path(folder) / "config", Path(folder) / "log"
        config.write_text(haproxy_config(port, servers, BALANCES[balance], retries))
        with (
            log.open("wb") as output,
            subprocess.Popen([program, "-db", "-f", str(config)], stdout=output, stderr=output) as process,
        ):
            try:
                _wait_until_ready(url, process, log)
                yield url
            finally:
                process.terminate()


# --- clients


@dataclass(frozen=True, slots=True)
class Answer:
    """Result of one request.

    Attributes:
      arrival: The request.
      sent_s: Time when it was first sent, in seconds from the start.
      ttft_s: Seconds to its first token, over all tries; None without one.
      e2e_s: Seconds to its end.
      failures: Why tries failed, in order.
      is_complete: Whether the last try had its whole reply.
    """

    arrival: Arrival
    sent_s: float
    ttft_s: float | None
    e2e_s: float
    failures: tuple[str, ...]
    is_complete: bool


class Clients:
    """Sends requests and repeats those that were refused.

    Args:
      urls: Addresses to choose among.
      load: Lengths of prompts.
      salt: Prompts with other salts share no prefix.
      pick: Returns the index of the address for a request, by its number.
      retries: Times that a request is sent again that failed.
      waits: Whether a client waits as long as `Retry-After` says before it tries again; without, half a second.
    """

    def __init__(
        self,
        urls: Sequence[str],
        load: Workload,
        salt: int,
        pick: Callable[[int, Arrival], int],
        retries: int,
        *,
        waits: bool,
    ) -> None:
        self._clients = [HttpClient(Address.parse(url), timeout_s=120.0) for url in urls]
        self._load, self._salt, self._pick = load, salt, pick
        self._retries, self._waits = retries, waits
        self._prefixes = [self._tokens(f"{salt} {prefix}", load.prefix_tokens) for prefix in range(load.prefixes)]
        self.answers: list[Answer] = []

    async def close(self) -> None:
        for client in self._clients:
            await client.close()

    async def send_all(self, arrivals: Sequence[Arrival]) -> None:
        """Sends each request when it is due, and waits for all replies."""
        self._start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number, arrival in enumerate(arrivals):
                if (wait := self._start + arrival.at - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                group.create_task(self._ask(number, arrival))

    async def _ask(self, number: int, arrival: Arrival) -> None:
        sent, failures, trace = time.perf_counter(), [], None
        for turn in range(self._retries + 1):
            trace, retry_after_s = await self._try(number, arrival)
            if trace.failure is None:
                break
            failures.append(trace.failure)
            if turn < self._retries:
                await asyncio.sleep(retry_after_s if self._waits else 0.5)
        assert trace is not None
        first = trace.token_times_s[0] - sent if trace.token_times_s else None
        complete = trace.failure is None
        self.answers.append(Answer(arrival, sent - self._start, first, trace.end_s - sent, tuple(failures), complete))

    async def _try(self, number: int, arrival: Arrival) -> Any:
        client = self._clients[self._pick(number, arrival)]
        recorder = StreamRecorder(time.perf_counter(), time.perf_counter())
        headers = {KEY_HEADER: f"{self._salt}-{arrival.prefix}"}
        try:
            response = await client.post("/v1/completions", self._body(number, arrival), recorder.feed, headers)
        except ClientError as error:
            return recorder.fail(str(error), time.perf_counter()), 0.1
        wait_s = float(response.headers.get(b"retry-after-ms", b"500")) / 1e3 * (1 + random.random() / 4)
        if response.status != 200:
            return recorder.fail(http_failure(response).partition(":")[0], time.perf_counter()), wait_s
        return recorder.finish(response, time.perf_counter()), wait_s

    def _body(self, number: int, arrival: Arrival) -> Mapping[str, Any]:
        question = self._tokens(f"{self._salt} question {number}", self._load.question_tokens)
        fixed = {"stream": True, "temperature": 0, "ignore_eos": True, "max_tokens": arrival.output_tokens}
        return {"prompt": self._prefixes[arrival.prefix] + question, **fixed}

    def _tokens(self, seed: str, count: int) -> list[int]:
        return random.Random(seed).choices(range(2000, _VOCABULARY // 2), k=count)


class EndpointPicker:
    """Scores replicas as the endpoint picker of the Gateway API Inference Extension does, by their metrics.

    Args:
      servers: The replicas.
      load: Lengths of prompts.
      every_s: Seconds between two readings of the metrics.
    """

    def __init__(self, servers: Sequence[Server], load: Workload, every_s: float = 0.25) -> None:
        self._clients = [HttpClient(Address.parse(server.url)) for server in servers]
        self._every_s = every_s
        self._seen: list[Mapping[str, float]] = [{}] * len(servers)
        self._prefixes: list[dict[int, None]] = [{} for _ in servers]
        self._most = 4096 * 64 // load.prefix_tokens

    async def watch(self) -> None:
        """Reads the metrics again and again."""
        while True:
            for number, client in enumerate(self._clients):
                page = await client.get("/metrics")
                self._seen[number] = parse_metrics(page.body.decode())
            await asyncio.sleep(self._every_s)

    def pick(self, number: int, arrival: Arrival) -> int:
        """Returns the index of the replica with the highest score, and notes that it has the prefix now."""
        waiting, used = ([seen.get(name, 0.0) for seen in self._seen] for name in SLOT_METRICS)
        longest, shortest = max(waiting), min(waiting)

        def score(index: int) -> float:
            queue = 1.0 if longest == shortest else (longest - waiting[index]) / (longest - shortest)
            return 2 * queue + 2 * (1 - used[index]) + 3 * (arrival.prefix in self._prefixes[index])

        best = max(range(len(self._seen)), key=lambda index: (score(index), random.random()))
        known = self._prefixes[best]
        known.pop(arrival.prefix, None)
        known[arrival.prefix] = None
        while len(known) > self._most:
            del known[next(iter(known))]
        return best

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


@dataclass(slots=True)
class Run:
    """One run of a load.

    Attributes:
      answers: What came of the requests.
      seconds: Seconds from the first request to the last reply.
      hit_share: Share of prompt tokens that prefix caches had.
      failures: Number of failed tries by their reason.
    """

    answers: Sequence[Answer]
    seconds: float
    hit_share: float
    failures: Counter[str]


def run_load(
    servers: Sequence[Server],
    load: Workload,
    arrivals: Sequence[Arrival],
    *,
    proxy: str | None = None,
    picks: str = "first",
    salt: int = 0,
    retries: int = 0,
    waits: bool = True,
    beside: Callable[[], None] = lambda: None,
) -> Run:
    """Sends a load to servers, or to a proxy in front of them.

    Args:
      proxy: Address of the proxy.
      picks: Without a proxy, how clients choose a server: "in turn", or "scores" of the endpoint picker.
      salt: Prompts with other salts share no prefix.
      retries: Times that a client sends a request again that failed.
      waits: Whether a client waits for the seconds of `Retry-After` before it tries again.
      beside: Runs on a thread beside the load.
    """
    urls = [server.url for server in servers] if proxy is None else [proxy]
    started, cached_before = time.perf_counter(), _cached(servers)

    async def send_all() -> Sequence[Answer]:
        picker = EndpointPicker(servers, load)
        watching = asyncio.create_task(picker.watch()) if picks == "scores" else None
        ways = {"first": lambda *_: 0, "in turn": lambda number, _: number % len(urls), "scores": picker.pick}
        clients = Clients(urls, load, salt, ways[picks], retries, waits=waits)
        await asyncio.gather(clients.send_all(arrivals), asyncio.to_thread(beside))
        await clients.close()
        if watching is not None:
            watching.cancel()
        await picker.close()
        return clients.answers

    answers = asyncio.run(send_all())
    seconds = time.perf_counter() - started
    hits, all_tokens = (after - before for after, before in zip(_cached(servers), cached_before, strict=True))
    failures = Counter(reason for answer in answers for reason in answer.failures)
    return Run(answers, seconds, hits / all_tokens if all_tokens else 0.0, failures)


def _cached(servers: Sequence[Server]) -> tuple[float, float]:
    """Returns the prompt tokens that prefix caches had, and all of them; of the servers that are ready."""
    pages = [server.metrics() for server in servers if server.is_ready()]
    hits, queries = (
        sum(page.get(f"vllm:prefix_cache_{name}_total", 0.0) for page in pages) for name in ("hits", "queries")
    )
    return hits, queries
