"""Contestant: `roost serve`, whose streams grow from a short prompt to a length; their speed is recorded on the way.

Server and client share the cores, so the client's work counts against Roost.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
import uvloop
from protocol import Command, answer_all, draw_prompts, versions
from roost.server.client import Address, ClientError, EventParser, HttpClient, http_failure

PROMPT = 16
"""Tokens of each prompt."""

MORE = 1000
"""Tokens that streams are asked for beyond the last length, since those that started first are ahead."""

LOAD_S = 600.0
POLL_S = 0.1


class Stream:
    """Growth of one stream.

    Attributes:
      seen: Arrival of each event, and the number of tokens up to it.
    """

    def __init__(self, enough: int, on_enough: Callable[[], None]) -> None:
        self.seen: list[tuple[float, int]] = []
        self._enough = enough
        self._on_enough = on_enough
        self._parser = EventParser()

    def feed(self, piece: bytes, now: float) -> None:
        for event in self._parser.feed(piece):
            chunk = {"choices": []} if event == b"[DONE]" else orjson.loads(event)
            if "error" in chunk:
                raise RuntimeError(str(chunk["error"]))
            count = len(chunk["choices"][0].get("token_ids") or ()) if chunk["choices"] else 0
            if count:
                before = self.seen[-1][1] if self.seen else 0
                self.seen.append((now, before + count))
                if before < self._enough <= before + count:
                    self._on_enough()

    def reached(self, length: int) -> float:
        """Returns the time at which the stream had this many tokens."""
        return next(now for now, total in self.seen if total >= length)

    def tokens(self, begin: float, end: float) -> int:
        """Returns the number of tokens that arrived after `begin` and up to `end`."""
        totals = [0, *(total for now, total in self.seen if now <= end)]
        return totals[-1] - max((total for now, total in self.seen if now <= begin), default=0)


def rate(streams: Sequence[Stream], first: int, last: int) -> float:
    """Returns the tokens per second of all streams, from when all are past `first` until one is at `last`."""
    begin, end = max(each.reached(first) for each in streams), min(each.reached(last) for each in streams)
    if begin >= end:
        raise RuntimeError(f"no moment at which all {len(streams)} streams are between {first} and {last} tokens")
    return sum(each.tokens(begin, end) for each in streams) / (end - begin)


class Server:
    """A `roost serve` process, and a client."""

    def __init__(self, arguments: Sequence[str], vocab_size: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-P", "-m", "roost.server", "serve", *arguments, "--port", str(port)]
        self.vocab_size = vocab_size
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ})
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.client = HttpClient(Address("127.0.0.1", port))
        self.runner.run(self._wait_until_ready())
        self.slots = orjson.loads(self.runner.run(self.client.get("/server_info")).body)["slots"]

    def warm(self) -> None:
        self.grow(2, [32], 16, 0)

    def grow(self, rows: int, lengths: Sequence[int], window: int, seed: int) -> Mapping[str, Any]:
        """Generates up to the last length, and returns the speed over the last tokens before each length.

        Args:
          window: Least number of tokens before a length that count; it is an eighth of the length if that is more.
        """
        streams = self.runner.run(self._grow(rows, max(lengths), seed))
        return {"tokens_per_s": [rate(streams, length - max(window, length // 8), length) for length in lengths]}

    async def _grow(self, rows: int, length: int, seed: int) -> Sequence[Stream]:
        left, done = rows, asyncio.Event()

        def one_less() -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set()

        streams = [Stream(length, one_less) for _ in range(rows)]
        prompts = draw_prompts(rows, PROMPT, self.vocab_size, seed)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._stream(ids, length + MORE, stream))
                for ids, stream in zip(prompts, streams, strict=True)
            ]
            await done.wait()
            for task in tasks:
                task.cancel()
        return streams

    async def _stream(self, ids: Sequence[int], max_tokens: int, stream: Stream) -> None:
        """Sends a greedy request that only its limit ends."""
        body = {
            "prompt": ids,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        answer = await self.client.post("/v1/completions", body, stream.feed)
        if answer.status != 200:
            raise RuntimeError(http_failure(answer))

    async def _wait_until_ready(self) -> None:
        deadline = time.perf_counter() + LOAD_S
        while time.perf_counter() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with status {self.process.returncode}")
            with contextlib.suppress(ClientError):  # it does not listen yet
                if (await self.client.get("/health/ready")).status == 200:
                    return
            await asyncio.sleep(POLL_S)
        raise RuntimeError("the server did not become ready")


def start(wanted: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Command]]:
    server = Server(wanted["arguments"], wanted["vocab_size"])
    facts = {"slots": server.slots, "versions": versions(("roost", "jax"))}
    return facts, {"warm": server.warm, "grow": server.grow}


if __name__ == "__main__":
    answer_all(start)
