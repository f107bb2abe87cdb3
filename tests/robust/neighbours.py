"""Measures how one tenant's attacks affect another tenant's chat, attack by attack.

    python tests/robust/neighbours.py [--only "NAME" ...] [--seconds 8] [--replicas] [--json]

Starts the server with the demo model and two tenants' keys. The victim sends one short request at a time: a chat, a
stream, now and then a constrained one; meanwhile it polls `/health` and imports a state. It does so on an idle server,
then during one attack of attacks.py, and so on in turn. Goals for every attack:

- the victim's p99 of the time to first token, of the gap between events and of a whole chat is at most 3 times that of
  the idle windows before and after, or at most 250 ms;
- `/health` responds within 100 ms;
- the server's memory stays within the budgets of `BUDGETS`, its database within those of `STORE_BUDGETS`;
- only the attacker's requests end: the process lives, each of the victim's requests succeeds with the text of the idle
  server, and the attacker receives only statuses that the attack's row allows.

Attacks that need a store have a server with a database of their own each. There the victim also stores a conversation
again and again, with the goals of a chat, and runs a batch of short lines, whose p99 is at most 3 times that of the
idle windows, or at most 2 s. Each of the victim's requests runs to its end once. After each server's last attack it
ends with 0 when it is asked to. `--replicas` runs these attacks on two servers that share a PostgreSQL: the victim's,
and that of the attacker.

Progress goes to stderr, a table in Markdown to stdout. Exits with 1 and lists the missed goals if there are any.
`--only` serves to mend one finding; `--seconds` trades time for samples.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import httpx
import psycopg
from attacker import Attack
from attacks import ATTACKS
from roost.server.commands.bench.report import percentile
from store_victim import MAX_BATCH_S, BatchRun, StoreVictim, cancel_batches, metric

sys.path += [str(Path(__file__).resolve().parents[1] / folder) for folder in (".", "e2e")]

from databases import postgresql_program, postgresql_server
from server_process import PROGRAM, launched

MIB: Final = 2**20
CACHE_GIB: Final = 0.125
OPTIONS: Final = ("--state-cache-gib", str(CACHE_GIB))

BUDGETS: Final[Mapping[str, int]] = {
    "prefix cache (--state-cache-gib)": int(CACHE_GIB * 1024) * MIB,
    "saved states (as much as the prefix cache)": int(CACHE_GIB * 1024) * MIB,
    "bodies on their way in (32 times --max-body-bytes)": 32 * 4 * MIB,
    "what requests hold until their answers end": 1024 * MIB,
    "bodies that three worker threads parse (30 times --max-body-bytes)": 3 * 30 * 4 * MIB,
    "stored responses": 64 * MIB,
    "histories of ended requests": 16 * MIB,
    "all else": 256 * MIB,
}
"""Maximum bytes by which the server may grow after it was ready and had served the victim."""

STORE_GIB: Final = 0.25

STORE_BUDGETS: Final[Mapping[str, int]] = {
    "files of two tenants (--store-gib)": 2 * int(STORE_GIB * 1024) * MIB,
    "conversations of a tenant, and items that are not removed yet": 1280 * MIB,
}
"""Maximum bytes of the database's files."""

LINE_BUDGETS: Final[Mapping[str, int]] = {
    "what lines of batches hold until their answers end (as much as requests)": 1024 * MIB,
    "open lines of batches (32 times --max-body-bytes)": 32 * 4 * MIB,
}
"""Maximum bytes by which a server with a database may grow beyond `BUDGETS`."""

MAX_RATIO: Final = 3.0
MAX_LATENCY_S: Final = 0.25
MAX_HEALTH_S: Final = 0.1
MIN_ROUNDS: Final = 2
"""Minimum rounds of the victim's requests in each window, however long they take: an attack that delays the victim
lasts as long as they do.
"""

MAX_ATTACK_S: Final = 45.0
CLIENT_TIMEOUT_S: Final = 60.0
ATTACKER_TIMEOUT_S: Final = 600.0
"""Seconds for the attacker's process to prepare an attack or to end one, which its last requests delay."""
SETTLE_S: Final = 30.0
"""Seconds that the server may take to end an attacker's leftovers."""

STILL_RUNNING: Final = "requests still run"

QUESTIONS: Final = ("Hi", "What is 3 plus 4?", "Tell me a story.", "Spell the word boat.")
SHORT: Final[Mapping[str, Any]] = {"temperature": 0, "ignore_eos": True}
STREAM_TOKENS: Final = 24
CHAT_TOKENS: Final = 8


# --- processes


@dataclass(frozen=True)
class Store:
    """An empty database.

    Attributes:
      num_bytes: Returns the size of its files in bytes.
    """

    address: str
    num_bytes: Callable[[], int]


@contextmanager
def sqlite_store() -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder:
        files = partial(Path(folder).glob, "store.db*")
        yield Store(f"sqlite:///{folder}/store.db", lambda: sum(path.stat().st_size for path in files()))


@contextmanager
def postgresql_store() -> Iterator[Store]:
    with postgresql_server() as server, psycopg.connect(server.url, autocommit=True) as connection:

        def num_bytes() -> int:
            (found,) = connection.execute("SELECT pg_database_size(current_database())").fetchone() or (0,)
            return int(found)

        yield Store(server.url, num_bytes)


class Keys(NamedTuple):
    """API keys of two tenants."""

    victim: str
    attacker: str

    @classmethod
    def new(cls) -> "Keys":
        return cls(secrets.token_hex(16), secrets.token_hex(16))


@dataclass(frozen=True)
class Server:
    """A server process with the keys of two tenants."""

    process: subprocess.Popen[str]
    url: str
    log: Path
    keys: Keys
    store: Store | None = None

    @property
    def status(self) -> int | None:
        """Exit status; None while the process lives."""
        return self.process.poll()

    def resident_bytes(self) -> int:
        """Resident memory in bytes; 0 once the process has ended."""
        with contextlib.suppress(OSError, IndexError):
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE")
        return 0

    def stored_bytes(self) -> int:
        """Bytes of the database's files; 0 without one."""
        return 0 if self.store is None else self.store.num_bytes()

    def num_traces(self) -> int:
        """Number of tracebacks in the log."""
        return self.log.read_text(errors="replace").count("Traceback (most recent call last)")

    def stop(self) -> int:
        """Stops the server and returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL


@contextmanager
def serving(
    program: Sequence[str] = PROGRAM, model: str = "demo", *, store: Store | None = None, keys: Keys | None = None
) -> Iterator[Server]:
    """Starts a server and yields it when it is ready.

    Args:
      program: Arguments of Python that run `roost`.
      keys: Its keys; None makes new ones.
    """
    keys = keys or Keys.new()
    tenants = [word for name, key in keys._asdict().items() for word in ("--api-key", f"{name}:{key}")]
    stored = () if store is None else ("--store", store.address, "--store-gib", str(STORE_GIB))
    with tempfile.TemporaryDirectory() as states:
        disk = ("--state-cache-dir", states, "--state-cache-dir-gib", "0.25")
        with launched(model, *OPTIONS, *disk, *tenants, *stored, program=program) as server:
            yield Server(server.process, server.url, server.log, keys, store)


class AttackerProcess:
    """attacks.py as a process, which documents the messages on its pipes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def prepare(self, attack: Attack, server: Server) -> str | None:
        """Prepares an attack; returns the reason if that is impossible."""
        address = urlsplit(server.url)
        order = {"name": attack.name, "host": address.hostname, "port": address.port, "key": server.keys.attacker}
        await self._say(json.dumps({**order, "max_seconds": MAX_ATTACK_S}))
        line = await self._hear()
        return None if line == "ready" else f"the attack could not be prepared: {line}"

    async def begin(self) -> None:
        """Starts the prepared attack."""
        await self._say("go")

    async def end(self) -> dict[str, Any]:
        """Ends the attack; returns the number of the attacker's responses by status, and failures on its side."""
        await self._say("stop")
        return json.loads(await self._hear())

    async def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()

    async def _hear(self) -> str:
        assert self._process.stdout is not None
        return (await asyncio.wait_for(self._process.stdout.readline(), ATTACKER_TIMEOUT_S)).decode().strip()


@asynccontextmanager
async def attacking() -> AsyncIterator[AttackerProcess]:
    program, pipe = Path(__file__).with_name("attacks.py"), asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, str(program), stdin=pipe, stdout=pipe)
    try:
        yield AttackerProcess(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


# --- the victim


@dataclass
class Window:
    """Observations of the victim in one window.

    Attributes:
      first: Seconds to a stream's first event.
      gap: Seconds from one event to the next.
      chat: Seconds of a whole chat.
      health: Seconds of `/health`.
      write: Seconds of storing a conversation.
      batches: Batches that have ended.
      problems: The victim's requests that failed or had another text.
      peak_bytes: Maximum memory of the server.
      stored_bytes: Maximum size of its database.
    """

    first: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    chat: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    write: list[float] = field(default_factory=list)
    batches: list[BatchRun] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    peak_bytes: int = 0
    stored_bytes: int = 0

    @property
    def batch(self) -> list[float]:
        """Seconds of each batch."""
        return [run.seconds for run in self.batches]

    def fail(self, problem: str) -> None:
        """Records a problem once."""
        if problem not in self.problems and len(self.problems) < 5:
            self.problems.append(problem)

    def joined(self, other: "Window") -> "Window":
        return Window(
            self.first + other.first,
            self.gap + other.gap,
            self.chat + other.chat,
            self.health + other.health,
            self.write + other.write,
            self.batches + other.batches,
            self.problems + other.problems,
            max(self.peak_bytes, other.peak_bytes),
            max(self.stored_bytes, other.stored_bytes),
        )


class Victim:
    """A tenant that sends one short request at a time, and knows the outputs of an idle server.

    Args:
      server: Server that gets the requests.
      others: Further replicas with the same store.
    """

    def __init__(self, server: Server, *others: Server) -> None:
        headers = {"authorization": f"Bearer {server.keys.victim}"}
        self._server = server
        self._servers = (server, *others)
        self._replicas = [
            httpx.AsyncClient(base_url=each.url, headers=headers, timeout=CLIENT_TIMEOUT_S) for each in self._servers
        ]
        self._client = self._replicas[0]
        self._health = httpx.AsyncClient(base_url=server.url, timeout=CLIENT_TIMEOUT_S)
        self._answers: dict[tuple[str, int], str] = {}
        self._file = b""
        self._number = itertools.count()
        self._num_ended = 0
        bodies = [_body(question, CHAT_TOKENS) for question in QUESTIONS]
        self._store = None if server.store is None else StoreVictim(self._replicas, bodies)

    @property
    def status(self) -> int | None:
        """Exit status of a replica that has ended; None while all live."""
        return next((each.status for each in self._servers if each.status is not None), None)

    async def close(self) -> None:
        for each in (*self._replicas, self._health):
            await each.aclose()

    async def learn(self) -> None:
        """Sends every request once, and keeps the outputs and a state."""
        for question in QUESTIONS:
            for num_tokens in (CHAT_TOKENS, STREAM_TOKENS):
                response = await self._client.post("/v1/chat/completions", json=_body(question, num_tokens))
                response.raise_for_status()
                self._answers[question, num_tokens] = response.json()["choices"][0]["message"]["content"]
        state = await self._client.post("/v1/states", json={"request_id": response.json()["id"]})
        state_id = state.json()["id"]
        self._file = (await self._client.get(f"/v1/states/{state_id}/export")).content
        await self._client.delete(f"/v1/states/{state_id}")
        if self._store is not None:
            await self._store.learn()
            self._num_ended = await self._store.num_finished() - self._store.num_ended

    async def watch(self, seconds: float, *, has_batches: bool = True) -> Window:
        """Sends requests for some seconds, and at least `MIN_ROUNDS` times; waits for those that still run.

        Args:
          has_batches: Whether they include batches, if the server has any.
        """
        window = Window()
        talking = asyncio.create_task(self._talk(window, time.monotonic() + seconds))
        works = [self._ask_health, self._import, self._weigh]
        works += [] if self._store is None else [self._write]
        works += [self._run_batch] if self._store is not None and has_batches else []
        await asyncio.gather(talking, *(self._repeat(work, window, talking) for work in works))
        return window

    async def settle(self) -> str | None:
        """Waits until the server is idle; returns a problem if that takes too long."""
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                loads = [await _load(each) for each in self._replicas]
                if not any(load["running"] or load["waiting"] for load in loads):
                    return None
            if self.status is not None:
                return None
            await asyncio.sleep(0.05)
        return f"{STILL_RUNNING} {SETTLE_S:.0f} s after the attacker has left"

    async def lines_given_back(self) -> int:
        """Returns the number of lines that the server has left to be run later."""
        if self._store is None or self.status is not None:
            return 0
        return sum([await metric(each, "roost_batch_lines_given_back_total") for each in self._replicas])

    async def recount(self) -> str | None:
        """Returns a problem if not as many of the victim's requests have run to their end as were sent."""
        if self._store is None or self.status is not None:
            return None
        sent, computed = self._num_ended + self._store.num_ended, await self._store.num_finished()
        self._num_ended = computed - self._store.num_ended
        return None if sent == computed else f"{computed} requests of the victim ran to their end, and {sent} were sent"

    async def _talk(self, window: Window, until: float) -> None:
        turns = itertools.count()
        while self.status is None:
            turn = next(turns)
            if turn >= MIN_ROUNDS and time.monotonic() >= until:
                return
            question = QUESTIONS[turn % len(QUESTIONS)]
            try:
                await self._chat(window, question)
                await self._stream(window, question)
                if turn % 8 == 1:
                    await self._constrained(window)
            except (httpx.HTTPError, ValueError, KeyError) as error:
                window.fail(f"a request of the victim failed: {type(error).__name__} {error}"[:200])
            await asyncio.sleep(0.02)

    async def _chat(self, window: Window, question: str) -> None:
        began = time.perf_counter()
        response = await self._client.post("/v1/chat/completions", json=_body(question, CHAT_TOKENS))
        window.chat.append(time.perf_counter() - began)
        if response.status_code != 200:
            window.fail(f"a chat of the victim got {response.status_code}: {response.text[:150]}")
            return
        self._num_ended += 1
        text = response.json()["choices"][0]["message"]["content"]
        if text != self._answers[question, CHAT_TOKENS]:
            window.fail(f"the victim's chat {question!r} had another answer")

    async def _stream(self, window: Window, question: str) -> None:
        name = f"victim-{next(self._number)}"  # as a salt, so that the prefix cache does not skip the prefill
        body = {**_body(question, STREAM_TOKENS), "stream": True, "cache_salt": name}
        is_first, text, last = True, "", time.perf_counter()
        headers = {"x-request-id": name}
        async with self._client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            if response.status_code != 200:
                window.fail(f"a stream of the victim got {response.status_code}: {(await response.aread())[:150]!r}")
                return
            async for line in response.aiter_lines():
                if not (content := _content(line)):
                    continue
                now = time.perf_counter()
                (window.first if is_first else window.gap).append(now - last)
                is_first, text, last = False, text + content, time.perf_counter()
        self._num_ended += 1
        if text != self._answers[question, STREAM_TOKENS]:
            window.fail(f"the victim's stream {question!r} had another text")

    async def _constrained(self, window: Window) -> None:
        """Returns a regex that was never compiled before."""
        regex = f"(a|b|{next(self._number)}x){{1,4}}"
        body = {**_body("Hi", 4), "ignore_eos": False, "structured_outputs": {"regex": regex}}
        response = await self._client.post("/v1/chat/completions", json=body)
        if response.status_code != 200:
            window.fail(f"a regex of the victim got {response.status_code}: {response.text[:150]}")
            return
        self._num_ended += 1

    async def _repeat(
        self, work: Callable[[Window], Awaitable[None]], window: Window, talking: "asyncio.Task[None]"
    ) -> None:
        """Repeats an action for as long as the victim sends requests."""
        while not talking.done() and self.status is None:
            await work(window)

    async def _import(self, window: Window) -> None:
        await self._make(window, "an import", "/v1/states", "/import", content=self._file)
        await asyncio.sleep(0.5)

    async def _write(self, window: Window) -> None:
        seconds = await self._make(window, "a conversation", "/v1/conversations", json={})
        window.write += [] if seconds is None else [seconds]
        await asyncio.sleep(0.05)

    async def _make(self, window: Window, what: str, path: str, suffix: str = "", **body: Any) -> float | None:
        """Makes an object and deletes it; returns the seconds until the response, None without one."""
        began, seconds = time.perf_counter(), None
        try:
            response = await self._client.post(path + suffix, **body)
            seconds = time.perf_counter() - began
            if response.status_code == 200:
                await self._client.delete(f"{path}/{response.json()['id']}")
            else:
                window.fail(f"{what} of the victim got {response.status_code}: {response.text[:150]}")
        except httpx.HTTPError as error:
            window.fail(f"{what} of the victim failed: {type(error).__name__} {error}"[:200])
        return seconds

    async def _run_batch(self, window: Window) -> None:
        assert self._store is not None
        try:
            window.batches.append(await self._store.run())
        except (httpx.HTTPError, ValueError) as error:
            window.fail(f"a batch of the victim failed: {type(error).__name__} {error}"[:200])
            await asyncio.sleep(0.5)

    async def _ask_health(self, window: Window) -> None:
        began = time.perf_counter()
        try:
            response = await self._health.get("/health")
            if response.status_code != 200:
                window.fail(f"/health got {response.status_code}")
        except httpx.HTTPError as error:
            window.fail(f"/health failed: {type(error).__name__}")
        window.health.append(time.perf_counter() - began)
        await asyncio.sleep(0.02)

    async def _weigh(self, window: Window) -> None:
        window.peak_bytes = max(window.peak_bytes, self._server.resident_bytes())
        window.stored_bytes = max(window.stored_bytes, await asyncio.to_thread(self._server.stored_bytes))
        await asyncio.sleep(0.02)


async def _load(client: httpx.AsyncClient) -> dict[str, int]:
    return (await client.get("/load")).raise_for_status().json()


def _body(question: str, num_tokens: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "max_tokens": num_tokens, **SHORT}


def _content(line: str) -> str:
    """Returns the text of a stream's line; empty if it has none.

    Raises:
      ValueError: The line is an error event.
    """
    if not line.startswith("data: {"):
        return ""
    event = json.loads(line.removeprefix("data: "))
    if "error" in event:
        raise ValueError(f"a stream ended with {event['error']}")
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


# --- one attack after the other


@dataclass(frozen=True)
class Outcome:
    """Outcome of one attack.

    Attributes:
      window: Observations during the attack.
      quiet: Observations before and after.
      start_bytes: Memory of the server when it was ready.
      before_bytes: Memory before the attack.
      given_back: Number of lines of batches that the server left to be run later.
      statuses: Number of the attacker's responses by status.
      problems: Requests and processes that ended wrongly, and other failures.
    """

    attack: Attack
    window: Window
    quiet: Window
    start_bytes: int
    before_bytes: int
    statuses: Mapping[str, int]
    problems: Sequence[str]
    given_back: int = 0


def p99(values: Sequence[float]) -> float:
    return percentile(sorted(values), 99) if values else 0.0


def memory_budget(attack: Attack) -> int:
    """Returns the maximum bytes by which the server of an attack may grow."""
    return sum(BUDGETS.values()) + (sum(LINE_BUDGETS.values()) if attack.needs_store else 0)


def missed(outcome: Outcome) -> list[str]:
    """Missed goals, one per line: the attack, the goal, and the measured value."""
    window, quiet = outcome.window, outcome.quiet
    found = list(outcome.problems)
    if not (window.first and window.gap and window.chat):
        found.append("none of the victim's requests succeeded")
    if outcome.attack.needs_store and not outcome.attack.fills_slots and not window.batches:
        found.append("none of the victim's batches ended")
    for what, values, calm, least in (
        ("time to first token", window.first, quiet.first, MAX_LATENCY_S),
        ("gap between events", window.gap, quiet.gap, MAX_LATENCY_S),
        ("time of a chat", window.chat, quiet.chat, MAX_LATENCY_S),
        ("time of a stored write", window.write, quiet.write, MAX_LATENCY_S),
        ("time of a batch", window.batch, quiet.batch, MAX_BATCH_S),
    ):
        goal = max(MAX_RATIO * p99(calm), least)
        if p99(values) > goal:
            found.append(f"p99 of the victim's {what} is {1000 * p99(values):.0f} ms, goal {1000 * goal:.0f} ms")
    if (worst := max(window.health, default=0)) > MAX_HEALTH_S:
        found.append(f"/health took {1000 * worst:.0f} ms, goal {1000 * MAX_HEALTH_S:.0f} ms")
    growth, budget = window.peak_bytes - outcome.start_bytes, memory_budget(outcome.attack)
    if growth > budget:
        found.append(f"memory grew by {growth / MIB:.0f} MiB since the start, goal {budget / MIB:.0f} MiB")
    if (stored := window.stored_bytes) > (most := sum(STORE_BUDGETS.values())):
        found.append(f"the database takes {stored / MIB:.0f} MiB, goal {most / MIB:.0f} MiB")
    return [f"{outcome.attack.name} ({outcome.attack.finding}): {problem}" for problem in found]


def is_spent(outcome: Outcome) -> bool:
    """Whether the server is not fit for the next attack."""
    if outcome.attack.needs_store:
        return True  # deleted files count towards the limits for a while
    too_large = outcome.window.peak_bytes - outcome.start_bytes > memory_budget(outcome.attack)
    return too_large or any(problem.startswith(STILL_RUNNING) for problem in outcome.problems)


def unexpected(attack: Attack, statuses: Mapping[str, int]) -> list[str]:
    """Returns the attacker's responses that the attack's row does not allow."""
    return [
        f"the attacker got {count} times {status if status != '0' else 'no response'}"
        for status, count in statuses.items()
        if int(status) not in attack.statuses
    ]


HEADER: Final = (
    "attack (finding)",
    "first token p50 / p99, quiet",
    "during the attack",
    "gap p50 / p99, quiet",
    "during the attack",
    "`/health`, worst",
    "stored write p50 / p99, quiet",
    "during the attack",
    "batch p50 / p99, quiet",
    "during the attack",
    "lines given back",
    "database",
    "memory",
    "ended but should not",
)


def row(outcome: Outcome) -> list[str]:
    """Returns one row of the table: milliseconds, and the MiB that the attack added."""
    window, quiet = outcome.window, outcome.quiet
    growth = max(0, window.peak_bytes - outcome.before_bytes)
    return [
        f"{outcome.attack.name} ({outcome.attack.finding})",
        _pair(quiet.first),
        _pair(window.first),
        _pair(quiet.gap),
        _pair(window.gap),
        f"{1000 * max(window.health, default=0):.0f} ms",
        _pair(quiet.write),
        _pair(window.write),
        _pair(quiet.batch),
        _pair(window.batch),
        str(outcome.given_back),
        f"{window.stored_bytes / MIB:.0f} MiB",
        f"+{growth / MIB:.0f} MiB",
        "; ".join(_cell(problem) for problem in outcome.problems) or "nothing",
    ]


def _cell(problem: str) -> str:
    """Returns a problem as a cell of the table: its start, without characters that end a cell."""
    return problem.replace("|", "/").replace("\n", " ")[:100]


def _pair(values: Sequence[float]) -> str:
    if not values:
        return "none"
    ordered = sorted(values)
    return f"{1000 * percentile(ordered, 50):.1f} / {1000 * percentile(ordered, 99):.1f} ms"


async def cancel_all(server: Server) -> None:
    """Cancels the attacker's batches."""
    headers = {"authorization": f"Bearer {server.keys.attacker}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=CLIENT_TIMEOUT_S) as client:
        await cancel_batches(client)


async def attack_once(
    attack: Attack, server: Server, victim: Victim, attacker: AttackerProcess, seconds: float
) -> tuple[Window, Mapping[str, int], list[str]]:
    """Runs a prepared attack; returns the victim's observations, the attacker's statuses, and the failures."""
    num_traces = server.num_traces()
    await attacker.begin()
    window = await victim.watch(seconds, has_batches=not attack.fills_slots)
    found = await attacker.end()
    if attack.needs_store and victim.status is None:
        await cancel_all(server)
    left = await victim.settle()
    if victim.status is not None:  # everything else follows from it
        return window, found["statuses"], [f"the process ended with status {victim.status}"]
    problems = [*window.problems, *unexpected(attack, found["statuses"])]
    if found["problem"] is not None:
        problems.append(f"the attack failed by itself: {found['problem']}")
    if left is not None:
        problems.append(left)
    if (counted := await victim.recount()) is not None:
        problems.append(counted)
    if (added := server.num_traces() - num_traces) > 0:
        problems.append(f"the log has {added} stack traces more")
    return window, found["statuses"], problems


class Suite:
    """Runs attacks on one server.

    A new server is started after an attack that has ended the last one or left it with too much memory or work, so that
    no other attack is blamed for it.
    """

    def __init__(self, attacks: Sequence[Attack], seconds: float, *, has_replicas: bool = False) -> None:
        self._attacks = list(attacks)
        self._seconds = seconds
        self._has_replicas = has_replicas
        self._total = len(attacks)
        self.outcomes: list[Outcome] = []
        self.problems: list[str] = []

    async def run(self) -> None:
        """Runs all attacks."""
        while self._attacks:
            with ExitStack() as stack:
                servers = self._start(stack)
                victim = Victim(*servers)
                async with attacking() as attacker:
                    await victim.learn()
                    await self._run_on(servers[0], servers[-1], victim, attacker)
                await victim.close()
                for server in servers:
                    if server.status is None and (status := server.stop()) != 0:
                        self._miss(f"asked to end, the server left with status {status}")

    def _start(self, stack: ExitStack) -> list[Server]:
        """Returns the servers of the next attack, the victim's first and the attacker's last."""
        if not self._attacks[0].needs_store:
            return [stack.enter_context(serving())]
        kind: AbstractContextManager[Store] = postgresql_store() if self._has_replicas else sqlite_store()
        store, keys = stack.enter_context(kind), Keys.new()
        return [stack.enter_context(serving(store=store, keys=keys)) for _ in range(1 + self._has_replicas)]

    async def _run_on(self, server: Server, target: Server, victim: Victim, attacker: AttackerProcess) -> None:
        """Runs attacks until none is left or the server has to be replaced."""
        await victim.watch(1)  # the first requests also load what later ones find loaded
        start_bytes = server.resident_bytes()
        calm = await victim.watch(self._quiet_s)
        has_store = server.store is not None
        while self._attacks and victim.status is None and self._attacks[0].needs_store == has_store:
            attack = self._attacks.pop(0)
            say(f"{self._total - len(self._attacks)} of {self._total}: {attack.name} ({attack.finding})")
            before_bytes = server.resident_bytes()
            reason = await attacker.prepare(attack, target)
            if reason is not None:
                self._note(Outcome(attack, Window(), calm, start_bytes, start_bytes, {}, [reason]))
                return
            window, statuses, problems = await attack_once(attack, server, victim, attacker, self._seconds)
            given_back = await victim.lines_given_back()
            after = await victim.watch(self._quiet_s) if victim.status is None else Window()
            quiet = calm.joined(after)
            if after.problems:
                problems.append(f"afterwards: {after.problems[0]}")
            self._note(Outcome(attack, window, quiet, start_bytes, before_bytes, statuses, problems, given_back))
            if is_spent(self.outcomes[-1]):
                return
            calm = after

    @property
    def _quiet_s(self) -> float:
        return max(1.0, self._seconds / 3)

    def _note(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        got = ", ".join(f"{count} {status}" for status, count in outcome.statuses.items()) or "nothing"
        say(f"    {' | '.join(row(outcome)[1:-1])}; the attacker got {got}")
        for problem in missed(outcome):
            self._miss(problem)

    def _miss(self, problem: str) -> None:
        say(f"    MISSED {problem}")
        self.problems.append(problem)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(outcomes: Sequence[Outcome]) -> str:
    lines = [HEADER, ["---", *["---:"] * (len(HEADER) - 2), "---"], *map(row, outcomes)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [attack.name for attack in ATTACKS]
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, default=names, help="; ".join(names))
    parser.add_argument("--seconds", type=float, default=8, help="of each attack; a third of that is quiet in between")
    parser.add_argument("--replicas", action="store_true", help="attack two replicas that share a PostgreSQL")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(arguments)
    if options.replicas and postgresql_program("initdb") is None:
        parser.error("--replicas needs PostgreSQL, which is not installed")
    return options


def main() -> int:
    options = parse()
    began = time.monotonic()
    attacks = [attack for attack in ATTACKS if attack.name in options.only]
    attacks = [attack for attack in attacks if attack.needs_store] if options.replicas else attacks
    suite = Suite(attacks, options.seconds, has_replicas=options.replicas)
    asyncio.run(suite.run())
    problems = suite.problems
    if options.json:
        rows = [row(outcome) for outcome in suite.outcomes]
        print(json.dumps({"header": HEADER, "rows": rows, "problems": problems, "seconds": time.monotonic() - began}))
    else:
        print(table(suite.outcomes))
    say(f"{len(suite.outcomes)} attacks, {len(problems)} goals missed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
