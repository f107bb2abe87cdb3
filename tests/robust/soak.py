"""Runs mixed load on one server for a given time, and checks that nothing of it is lost.

    python tests/robust/soak.py [--minutes 20] [--model demo] [--clients 16] [--slots 4] [--seed 0] [--json]

Starts a server, runs every case alone and keeps the outputs. Then clients send random requests concurrently: streams
and whole responses, several choices, constrained ones, long conversations with common prefixes, requests that
disconnect at random points, that have too short timeouts, that are invalid, and more than the queue holds. Every output
has to equal that of the case alone, to the last character; a partial one has to be its prefix. At the end no slot may
be in use, no gauge above 0, nothing compiled, memory may not have grown, and the server must exit with status 0. Exits
with 1 and lists the problems if there are any.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

sys.path += [str(Path(__file__).resolve().parents[1] / folder) for folder in (".", "e2e")]

from server_process import launched

MAX_QUEUE = 8
GROWTH = 1.05
"""Maximum growth of memory between the first third of the time and the last one."""

STORY = (
    "Once upon a time, a small boat lived by a big lake. Every day the boat wanted to see the other side. One day the "
    "wind was soft and the sun was warm, so the boat went out on the water. It saw a duck and a fish. They played a "
    "game and were happy. Then the sky became dark and it started to rain. The duck showed the boat the way home."
)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
GAUGES = ("roost_num_requests_running", "roost_num_requests_waiting", "roost_slots_used", "roost_waiting_prompt_tokens")

BAD: Sequence[tuple[str, Any]] = (
    ("/v1/chat/completions", {"messages": []}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "temperature": 3}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "n": 0}),
    ("/v1/completions", {"prompt": [10**9]}),
    ("/v1/completions", {"prompt": "a", "structured_outputs": {"regex": "("}}),
    ("/v1/completions", {"prompt": "a", "logit_bias": {"x": 1}}),
    ("/v1/completions", {"prompt": "a", "timeout": -1}),
    ("/v1/completions", {}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 0}),
    ("/v1/responses", {"input": []}),
    ("/generate", {"token_ids": []}),
    ("/v1/completions", b'{"prompt": "a'),
    ("/v1/completions", b"\xff\xfe"),
    ("/v1/completions", b"[" * 5000),
)


@dataclass(frozen=True)
class Case:
    """A request with a known output: chat or completions."""

    path: str
    body: dict[str, Any]
    answer: tuple[str, ...] = ()
    """Returns the choices' texts."""


@dataclass
class Tally:
    """Counts of what happened."""

    done: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    problems: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    def check(self, holds: bool, problem: str) -> None:
        if not holds and len(self.problems) < 20:
            self.problems.append(problem)


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def cases() -> list[Case]:
    """Returns all cases, each with a seed, so that it has one output."""
    questions = ("What is the capital of Spain?", "Spell the word boat.", "What is 3 plus 4?", "Tell me a story.")
    chats: list[dict[str, Any]] = [
        {"messages": turns(question), "max_tokens": 40, "temperature": temperature, "seed": seed}
        for seed, question in enumerate(questions)
        for temperature in (0, 0.8)
    ]
    chats += [  # these have a common prefix, for the prefix cache
        {"messages": turns(f"My name is {name}.", f"Hi, {name}!", "Tell me a story.", STORY, "What is my name?")}
        for name in ("Anna", "Ben", "Zoe")
    ]
    chats += [
        {"messages": turns("Tell me a story about a bear."), "n": 3, "temperature": 1, "seed": 7, "max_tokens": 30},
        {"messages": turns("Tell me a story."), "stop": ["boat", "."], "temperature": 0.7, "seed": 8},
        {"messages": turns("Who?"), "response_format": {"type": "json_object"}, "temperature": 1, "seed": 9},
        {"messages": turns("Who?"), "structured_outputs": {"json": SCHEMA}, "temperature": 1, "seed": 10},
        {"messages": turns("Yes?"), "structured_outputs": {"choice": ["yes", "no", "perhaps"]}, "seed": 11},
        {"messages": turns("Hi"), "logprobs": True, "top_logprobs": 5, "max_tokens": 20, "seed": 12},
    ]
    texts: list[dict[str, Any]] = [
        {"prompt": STORY * 4, "max_tokens": 8, "temperature": 0},
        {"prompt": [STORY, "Once", "The"], "max_tokens": 12, "temperature": 0.9, "seed": 13},
        {"prompt": "a b c", "structured_outputs": {"regex": "( [a-z]){8}"}, "temperature": 1, "seed": 14},
        {"prompt": "The boat", "max_tokens": 200, "temperature": 1, "top_p": 0.9, "seed": 15, "ignore_eos": True},
        {"prompt": "The duck", "max_tokens": 60, "frequency_penalty": 1, "logit_bias": {"40": 3}, "seed": 16},
    ]
    bounded = [{"max_tokens": 64, "seed": 0, **body} for body in (*chats, *texts)]
    return [Case("/v1/chat/completions" if "messages" in body else "/v1/completions", body) for body in bounded]


def texts_of(answer: dict[str, Any]) -> tuple[str, ...]:
    ordered = sorted(answer["choices"], key=lambda choice: choice["index"])
    return tuple(choice["message"]["content"] if "message" in choice else choice["text"] for choice in ordered)


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))
        elif line == "data: [DONE]":
            yield {"choices": [], "done": True}


class Soak:
    """Clients of one server, and their observations."""

    def __init__(self, client: httpx.AsyncClient, rng: random.Random) -> None:
        self._client = client
        self._rng = rng
        self._cases = cases()
        self.tally = Tally()

    async def learn(self) -> None:
        """Runs every case alone."""
        learned = []
        for case in self._cases:
            response = await self._client.post(case.path, json=case.body)
            assert response.status_code == 200, response.text
            learned.append(Case(case.path, case.body, texts_of(response.json())))
        self._cases = learned

    async def work(self, until: float) -> None:
        """Runs one client."""
        kinds = (self._whole, self._streamed, self._left, self._cancelled, self._wrong, self._hurried, self._aborted)
        while time.monotonic() < until:
            (kind,) = self._rng.choices(kinds, (4, 4, 3, 1, 1, 1, 1))
            try:
                await kind(self._rng.choice(self._cases))
            except httpx.HTTPError as error:
                self.tally.check(False, f"{kind.__name__}: {error!r}")
            await asyncio.sleep(self._rng.expovariate(50))

    async def _whole(self, case: Case) -> None:
        response = await self._client.post(case.path, json=case.body)
        if await self._refused(response):
            return
        self._note("whole", response.status_code == 200, f"{response.status_code} {response.text[:300]}")
        if response.status_code == 200:
            answer = response.json()
            self.tally.tokens += answer["usage"]["completion_tokens"]
            self.tally.check(texts_of(answer) == case.answer, f"another answer to {case.body}")

    async def _streamed(self, case: Case) -> None:
        """Reads a stream, sometimes slowly."""
        pause = self._rng.choice((0, 0, 0, 0.02))
        texts, ended = await self._read(case, case.body, pause=pause)
        if texts is not None:
            self._note("streamed", ended, f"a stream ended early: {case.body}")
            self.tally.check(texts == case.answer, f"another stream of {case.body}")

    async def _left(self, case: Case) -> None:
        """Closes the connection after some events."""
        texts, _ = await self._read(case, case.body, most=self._rng.randint(1, 40))
        if texts is not None:
            begins = all(whole.startswith(text) for whole, text in zip(case.answer, texts, strict=True))
            self._note("left", begins, f"another beginning of {case.body}")

    async def _cancelled(self, case: Case) -> None:
        """Closes the connection at any time, also while the request waits."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._rng.random()):
                await self._client.post(case.path, json=case.body)
        self._note("cancelled", True)

    async def _aborted(self, case: Case) -> None:
        """Aborts the request by the id that the client gave it."""
        name = f"soak-{self._rng.getrandbits(64):x}"
        asking = asyncio.create_task(self._client.post(case.path, json=case.body, headers={"x-request-id": name}))
        await asyncio.sleep(0.3 * self._rng.random())
        await self._client.post("/abort_request", json={"request_id": name})
        response = await asking
        fine = response.status_code in (409, 429) or texts_of(response.json()) == case.answer
        self._note("aborted", fine, f"{response.status_code} {response.text[:300]}")

    async def _hurried(self, case: Case) -> None:
        """Sends a request with a timeout that is usually too short."""
        name = self._rng.choice(("timeout", "queue_timeout"))
        response = await self._client.post(case.path, json={**case.body, name: 0.2 * self._rng.random() + 0.001})
        if await self._refused(response):
            return
        in_time = response.status_code == 200 and texts_of(response.json()) == case.answer
        self._note(
            "hurried", in_time or response.status_code in (503, 504), f"{response.status_code} {response.text[:300]}"
        )

    async def _wrong(self, _: Case) -> None:
        path, body = self._rng.choice(BAD)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = await self._client.post(path, content=content, headers={"content-type": "application/json"})
        shaped = response.status_code == 400 and isinstance(response.json().get("error", {}).get("message"), str)
        self._note("wrong", shaped, f"{path} {body!r:.100}: {response.status_code} {response.text[:300]}")

    async def _read(
        self, case: Case, body: dict[str, Any], most: int = 10**9, pause: float = 0
    ) -> tuple[tuple[str, ...] | None, bool]:
        """Returns the texts read so far, and whether they are complete; None if the request was refused."""
        texts, num_events = [""] * len(case.answer), 0
        async with self._client.stream("POST", case.path, json={**body, "stream": True}) as response:
            if response.status_code != 200:
                await response.aread()
                if not await self._refused(response):
                    self.tally.check(False, f"{response.status_code} {response.text[:300]}")
                return None, False
            async for event in events(response):
                if "error" in event:
                    self.tally.check(False, f"a stream failed: {event}")
                    return None, False
                for choice in event["choices"]:
                    texts[choice["index"]] += choice.get("text") or choice.get("delta", {}).get("content") or ""
                num_events += 1
                if event.get("done") or num_events >= most:
                    return tuple(texts), bool(event.get("done"))
                await asyncio.sleep(pause)
        return tuple(texts), False

    async def _refused(self, response: httpx.Response) -> bool:
        """Returns whether the server was full, after waiting as long as it said."""
        if response.status_code != 429:
            return False
        self._note("refused", True)
        await asyncio.sleep(int(response.headers["retry-after-ms"]) / 1000)
        return True

    def _note(self, kind: str, fine: bool, problem: str = "") -> None:
        self.tally.done[kind] += 1
        self.tally.check(fine, f"{kind}: {problem}")

    async def metrics(self) -> dict[str, float]:
        await asyncio.sleep(0.3)  # the page is cached
        lines = (await self._client.get("/metrics")).text.splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def resident_bytes(pid: int) -> int:
    """Returns the resident memory of a process, or 0 if the system does not report it."""
    statm = Path(f"/proc/{pid}/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.is_file() else 0


async def run(options: argparse.Namespace, url: str, pid: int) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=4 * options.clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        soak = Soak(client, random.Random(options.seed))
        await soak.learn()
        began = time.monotonic()
        until = began + 60 * options.minutes
        working = [asyncio.create_task(soak.work(until)) for _ in range(options.clients)]
        most_waiting = 0.0
        while not all(task.done() for task in working):
            soak.tally.memory.append(resident_bytes(pid))
            most_waiting = max(most_waiting, (await soak.metrics())["roost_num_requests_waiting"])
            await asyncio.sleep(min(2.0, 2 * options.minutes))
        for task in working:
            task.result()
        return await report(soak, time.monotonic() - began, most_waiting)


async def report(soak: Soak, seconds: float, most_waiting: float) -> dict[str, Any]:
    """Checks that the server is idle again, and sums up."""
    tally = soak.tally
    for _ in range(20):
        metrics = await soak.metrics()
        if not any(metrics[gauge] for gauge in GAUGES):
            break
    for gauge in GAUGES:
        tally.check(metrics[gauge] == 0, f"{gauge} is {metrics[gauge]:g} though nobody asks")
    compiles = metrics["roost_compiles_since_ready_total"]
    tally.check(compiles == 0, f"{compiles:g} programs were compiled after the start")
    third = max(1, len(tally.memory) // 3)
    first, last = statistics.median(tally.memory[:third]), statistics.median(tally.memory[-third:])
    tally.check(last <= GROWTH * first, f"memory grew from {first / 2**20:.0f} to {last / 2**20:.0f} MiB")
    return {
        "seconds": seconds,
        "requests": sum(tally.done.values()),
        "by_kind": dict(tally.done),
        "tokens_compared": tally.tokens,
        "tokens_generated": metrics["roost_generation_tokens_total"],
        "most_waiting": most_waiting,
        "memory_mib": [first / 2**20, last / 2**20],
        "compiles": compiles,
        "problems": tally.problems,
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    with launched(options.model, "--slots", str(options.slots), "--max-queue", str(MAX_QUEUE)) as server:
        result = asyncio.run(run(options, server.url, server.process.pid))
        server.process.send_signal(signal.SIGTERM)
        status = server.ends(30)
        written = server.log.read_text()
    problems = result["problems"]
    if status != 0:
        problems.append(f"the server left with status {status}")
    if "Traceback" in written:
        problems.append(written[written.index("Traceback") :][:3000])
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
