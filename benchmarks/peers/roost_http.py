"""Contestant: a `roost serve` process and the client of `roost bench`, which streams token ids from it.

Server and client share the cores, so the client's work counts against Roost.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import orjson
from http_server import Launch, RequestError, Server
from protocol import Command, answer_all, draw_prompts, versions
from roost.server.client import EventParser, Response, http_failure
from roost.server.commands.bench.report import percentile

LONG = 100_000
"""Requested tokens of streams whose client disconnects before their end."""


class Stream:
    """Records the response to one request.

    Attributes:
      times: Arrival of each event with tokens.
      counts: Number of tokens of each event.
    """

    def __init__(self, on_event: Callable[["Stream"], None] = lambda stream: None) -> None:
        self.times: list[float] = []
        self.counts: list[int] = []
        self.total = 0
        self._parser = EventParser()
        self._on_event = on_event

    def feed(self, piece: bytes, now: float) -> None:
        for event in self._parser.feed(piece):
            if event == b"[DONE]":
                return
            chunk = orjson.loads(event)
            if "error" in chunk:
                raise RequestError(str(chunk["error"]))
            ids = chunk["choices"][0].get("token_ids") if chunk["choices"] else None
            if ids:
                self.times.append(now)
                self.counts.append(len(ids))
                self.total += len(ids)
                self._on_event(self)

    def tokens(self, begin: float, end: float) -> int:
        """Returns the number of tokens that arrived after `begin` and up to `end`."""
        return sum(count for now, count in zip(self.times, self.counts, strict=True) if begin < now <= end)


class Together:
    """Streams that run at the same time, until each has a number of tokens more since all have started.

    Attributes:
      done: Set when they have.
    """

    def __init__(self, rows: int, tokens: int) -> None:
        self.streams = [Stream(self._note) for _ in range(rows)]
        self.done = asyncio.Event()
        self._tokens = tokens
        self._marks: list[int] | None = None
        self._short = rows

    @property
    def began_s(self) -> float:
        """Time of the last stream's first token."""
        return max(stream.times[0] for stream in self.streams)

    def _note(self, stream: Stream) -> None:
        """Records tokens of a stream. The last stream's first token sets every stream's goal."""
        if self._marks is None:
            if len(stream.times) > 1 or not all(other.times for other in self.streams):
                return
            self._marks = [other.total + self._tokens for other in self.streams]
            self._waiting = {id(other): mark for other, mark in zip(self.streams, self._marks, strict=True)}
        mark = self._waiting.get(id(stream))
        if mark is not None and stream.total >= mark:
            del self._waiting[id(stream)]
            if not self._waiting:
                self.done.set()

    def rate(self) -> float:
        """Returns the tokens per second of all streams, from the last start to the first end."""
        end = min(stream.times[-1] for stream in self.streams)
        return sum(stream.tokens(self.began_s, end) for stream in self.streams) / (end - self.began_s)

    def events(self, begin: float, end: float) -> int:
        return sum(begin < now <= end for stream in self.streams for now in stream.times)


class RoostServer(Server):
    """A `roost serve` process, and a client that also measures its phases.

    Args:
      arguments: Arguments of `roost serve`.
    """

    def __init__(self, arguments: Sequence[str], vocab_size: int) -> None:
        command = [sys.executable, "-P", "-m", "roost.server", "serve", *arguments, "--port", "{port}"]
        super().__init__(Launch(command, "/health/ready"), vocab_size)

    async def stream(self, prompt: Sequence[int], max_tokens: int, sink: Callable[[bytes, float], None]) -> None:
        check(await self.client.post("/v1/completions", self.body(prompt, max_tokens), sink))

    async def ask(self, body: Mapping[str, Any]) -> Any:
        """Returns the whole response."""
        response = await self.client.post("/v1/completions", body)
        check(response)
        return orjson.loads(response.body)

    # --- commands

    def decode(self, rows: int, prompt: int, new: int, seed: int) -> Mapping[str, float]:
        """Runs streams that all decode; those that started first have a few tokens more than `new` at the end."""
        together, _ = self.run(self._together(rows, prompt, new - 1, seed))
        rate = together.rate()
        return {"decode_tokens_per_s": rate, "step_ms": 1e3 * rows / rate}

    def phases(self, rows: int, prompt: int, new: int, seed: int) -> Mapping[str, float]:
        """Measures the two phases of a job alone: prompts with one token each, and then all other tokens."""
        prompts = self.job(rows, prompt, 1, seed)
        tokens = self.decode(rows, prompt, new, seed)
        prompts_s, tokens_s = prompts["job_s"], 1e-3 * tokens["step_ms"] * (new - 1)
        return {"prompts_s": prompts_s, "tokens_s": tokens_s, "phases_s": prompts_s + tokens_s}

    def events(self, rows: int, prompt: int, new: int, seed: int) -> Mapping[str, float]:
        """Events per second while all streams run; an event may have several tokens."""
        together, _ = self.run(self._together(rows, prompt, new, seed))
        begin, end = together.began_s, min(stream.times[-1] for stream in together.streams)
        return {
            "events_per_s": together.events(begin, end) / (end - begin),
            "decode_tokens_per_s": together.rate(),
        }

    def prefill(self, rows: int, prompt: int, seed: int) -> Mapping[str, float]:
        return self.run(self._prefill(draw_prompts(rows, prompt, self.vocab_size, seed)))

    async def _prefill(self, prompts: Sequence[Sequence[int]]) -> Mapping[str, float]:
        streams = [Stream() for _ in prompts]
        sent = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for stream, prompt in zip(streams, prompts, strict=True):
                group.create_task(self.stream(prompt, 1, stream.feed))
        seconds = max(stream.times[0] for stream in streams) - sent
        return {"prefill_tokens_per_s": sum(map(len, prompts)) / seconds}

    async def _together(
        self,
        rows: int,
        prompt: int,
        new: int,
        seed: int,
        meanwhile: Callable[[Together], Awaitable[Any]] | None = None,
    ) -> tuple[Together, Any]:
        """Runs streams together and disconnects; returns them, and the result of the work meanwhile."""
        together = Together(rows, new)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.stream(ids, LONG, stream.feed))
                for ids, stream in zip(draw_prompts(rows, prompt, self.vocab_size, seed), together.streams, strict=True)
            ]
            await together.done.wait()
            seen = None if meanwhile is None else await meanwhile(together)
            for task in tasks:
                task.cancel()
        return together, seen

    def mixed(self, rows: int, prompt: int, new: int, arrivals: int, long: int, seed: int) -> Mapping[str, float]:
        """Measures how long streams wait for their tokens: alone, and while long prompts arrive one after the other.

        The wait is the time between two events, the 99th percentile over all streams. The wait alone is the median per
        token, since an event may have several.
        """

        async def arrive(together: Together) -> tuple[float, float]:
            quiet_until = time.perf_counter()
            for ids in draw_prompts(arrivals, long, self.vocab_size, seed + 1):
                stream = Stream()
                await self.stream(ids, 8, stream.feed)
            return quiet_until, time.perf_counter()

        together, (middle, end) = self.run(self._together(rows, prompt, new, seed, arrive))
        quiet = sorted(waits(together, together.began_s, middle, per_token=True))
        loaded = sorted(waits(together, middle, end, per_token=False))
        return {
            "quiet_ms": 1e3 * percentile(quiet, 50),
            "loaded_p50_ms": 1e3 * percentile(loaded, 50),
            "loaded_p99_ms": 1e3 * percentile(loaded, 99),
        }

    def agree(self, prompts: Sequence[Sequence[int]], new: int) -> Mapping[str, Any]:
        """Returns the tokens after each prompt alone, and after all at the same time."""
        return self.run(self._agree(prompts, new))

    async def _agree(self, prompts: Sequence[Sequence[int]], new: int) -> Mapping[str, Any]:
        whole = {"stream": False, "stream_options": None, "logprobs": 20}
        bodies = [{**self.body(ids, new), **whole} for ids in prompts]
        alone = [said(await self.ask(body)) for body in bodies]
        together = await asyncio.gather(*(self.ask(body) for body in bodies))
        return {"alone": alone, "together": [said(answer) for answer in together]}


def waits(together: Together, begin: float, end: float, per_token: bool) -> list[float]:
    """Returns the seconds between consecutive events of a stream, for those that ended between two times."""
    return [
        (stream.times[place] - stream.times[place - 1]) / (stream.counts[place] if per_token else 1)
        for stream in together.streams
        for place in range(1, len(stream.times))
        if begin < stream.times[place] <= end
    ]


def said(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the tokens of a response, and the top tokens of the first position."""
    choice = answer["choices"][0]
    top = choice["logprobs"]["top_logprobs"][0]
    return {
        "tokens": choice["token_ids"],
        "top": {name.removeprefix("token_id:"): logprob for name, logprob in top.items()},
    }


def check(answer: Response) -> None:
    """Checks that a request succeeded.

    Raises:
      RequestError: The server refused the request or did not finish it.
    """
    if answer.status != 200:
        raise RequestError(http_failure(answer))


def start(wanted: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Command]]:
    server = RoostServer(wanted["arguments"], wanted["vocab_size"])
    facts = {"dtype": wanted["dtype"], "versions": versions(("roost", "jax")), "parameters": wanted["parameters"]}
    names = ("warm", "decode", "events", "prefill", "mixed", "agree", "job", "closed", "arrivals", "phases")
    return facts, {name: getattr(server, name) for name in names}


if __name__ == "__main__":
    answer_all(start)
