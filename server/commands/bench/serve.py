"""`roost bench serve`: measures any server with OpenAI's API from the client's side."""

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import orjson
import uvloop
from rich.console import Group

from ...client import (
    ClientError,
    EventParser,
    HttpClient,
    Response,
    error_message,
    first_model,
    http_failure,
    server_addresses,
    server_version,
)
from ...settings import SettingsError
from ...terminal.exits import INTERRUPTED_STATUS, CommandError
from ..options import ServeBenchOptions
from .report import (
    Advance,
    Objective,
    RequestTrace,
    check_json_file,
    interruption,
    latencies_ms,
    make_table,
    meets,
    milliseconds,
    number,
    opening,
    parse_objective,
    pick,
    progress_bar,
    shown_rate,
    titled,
    write_report,
)
from .workload import draw_text, draw_token_ids, parse_lengths, poisson_times

_PATHS: Final = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


def bench_serve(options: ServeBenchOptions) -> int:
    """Measures and reports.

    Returns:
      The exit status.

    Raises:
      SettingsError: An option cannot be used.
      CommandError: The server cannot be reached, or responds to the first request with an error.
    """
    check_json_file(options.json)
    run = Run(options)
    document = opening("serve", run.options_as_json())
    interrupted = False
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run.all())
    except KeyboardInterrupt:
        interrupted = True
    if run.started_s is None:
        return INTERRUPTED_STATUS
    result = run.result()
    document |= {"server": run.server, "interrupted": interrupted, "result": result}
    write_report(tables(run.title(), result, interrupted), document, options.json)
    return INTERRUPTED_STATUS if interrupted else 0 if result["requests"]["completed"] else 1


class Run:
    """One run of the benchmark. Its results so far can be read at any time.

    Attributes:
      started_s: Time when the first measured request was due, in seconds of `time.perf_counter`; None before.
      server: Model and version that the server reports.

    Raises:
      SettingsError: An option cannot be used.
    """

    def __init__(self, options: ServeBenchOptions) -> None:
        if options.limits and not options.goodput:
            raise SettingsError(f"{options.limits[0]!r}: no argument is expected; a server is given by --url")
        if options.concurrency is not None and options.request_rate is not None:
            raise SettingsError("--concurrency and --request-rate: give one of them")
        (self._address,) = server_addresses([options.url], options.api_key, {})
        self._options = options
        self._rate = options.request_rate or math.inf
        self._input_len = parse_lengths("--input-len", options.input_len)
        self._output_len = parse_lengths("--output-len", options.output_len)
        self._objective = parse_objective("--goodput", [*(options.goodput or ()), *(options.limits or ())])
        self._traces: list[RequestTrace] = []
        self.started_s: float | None = None
        self.server: dict[str, Any] = {"model": options.model, "version": None}
        self._advance: Advance = lambda count: None

    def options_as_json(self) -> Mapping[str, Any]:
        """Returns the options for the document. It states whether a key was sent, but does not contain the key."""
        options = asdict(self._options)
        return {
            **{name: value for name, value in options.items() if name not in ("limits", "json", "timeout")},
            "api_key": self._options.api_key is not None,
            "timeout_s": self._options.timeout,
            "goodput": _shown(self._objective) if self._objective else None,
        }

    def title(self) -> str:
        """Returns a title that describes the load. Random prompts often end early, unless `ignore_eos` is set."""
        options, load = self._options, f"{self._rate:g} requests/s"
        if options.concurrency is not None:
            load = f"{options.concurrency} at a time"
        most = "" if options.ignore_eos else "at most "
        return f"{self.server['model']}, {load}, {options.input_len} tokens in, {most}{options.output_len} out"

    def result(self) -> dict[str, Any]:
        """Returns all numbers so far."""
        ends = [trace.end_s for trace in self._traces] or [time.perf_counter()]
        seconds = max(max(ends) - (self.started_s or 0.0), 1e-9)
        return summarize(self._traces, seconds, self._options.num_prompts, self._objective)

    async def all(self) -> None:
        """Queries the server, warms it up, and measures."""
        options = self._options
        self._client = HttpClient(self._address, options.api_key, options.timeout)
        try:
            self.server["version"] = await server_version(self._client)
            self.server["model"] = options.model or await first_model(self._client)
            await self._warm_up()
            await self._measure()
        finally:
            await self._client.close()

    async def _warm_up(self) -> None:
        rng = random.Random(f"warm-up {self._options.seed}")
        for _ in range(self._options.warmup):
            failure = (await self._trace(self._body(rng), time.perf_counter())).failure
            if failure is not None:
                fix = "; see --vocab-size and --endpoint" if failure.startswith(("HTTP 400", "HTTP 422")) else ""
                raise CommandError(f"the first request failed: {failure}{fix}")

    async def _measure(self) -> None:
        options = self._options
        rng = random.Random(options.seed)
        bodies = [self._body(rng) for _ in range(options.num_prompts)]

        async def send(number: int, due_s: float) -> None:
            self._traces.append(await self._trace(bodies[number], due_s))
            self._advance(1)

        with progress_bar("requests", options.num_prompts) as self._advance:
            self.started_s = time.perf_counter()
            if options.concurrency is not None:
                await send_in_turn(options.num_prompts, options.concurrency, send)
            else:
                await send_at(poisson_times(self._rate, options.num_prompts, rng), send)

    async def _trace(self, body: Mapping[str, Any], due_s: float) -> RequestTrace:
        recorder = StreamRecorder(due_s, time.perf_counter())
        try:
            response = await self._client.post(_PATHS[self._options.endpoint], body, recorder.feed)
        except ClientError as error:
            return recorder.fail(str(error), time.perf_counter())
        return recorder.finish(response, time.perf_counter())

    def _body(self, rng: random.Random) -> Mapping[str, Any]:
        """Returns the body of one request, with a random prompt and lengths."""
        options, length, max_tokens = self._options, rng.choice(self._input_len), rng.choice(self._output_len)
        body: dict[str, Any] = {
            "model": self.server["model"],
            "max_tokens": max_tokens,
            "temperature": options.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if options.ignore_eos:
            body["ignore_eos"] = True
        if options.endpoint == "chat":
            return {**body, "messages": [{"role": "user", "content": draw_text(length, rng)}]}
        # Servers that accept token ids also return them, so that tokens without text are counted.
        return {**body, "prompt": draw_token_ids(length, options.vocab_size, rng), "return_token_ids": True}


type Send = Callable[[int, float], Coroutine[Any, Any, None]]
"""Sends a request and waits for its response, without raising.

Args: the request's number, and the time when it was due, in seconds of `time.perf_counter`.
"""


async def send_at(times: Sequence[float], send: Send) -> None:
    """Sends each request at its time, whether or not others have a response (open loop).

    Args:
      times: Rising times in seconds from now.
      send: Sends one request.
    """
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number, due in enumerate(times):
            if (wait := start + due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            group.create_task(send(number, start + due))


async def send_in_turn(count: int, concurrency: int, send: Send) -> None:
    """Keeps `concurrency` requests open: the next one is sent when one has its response (closed loop)."""
    numbers = iter(range(count))

    async def work() -> None:
        for each in numbers:
            await send(each, time.perf_counter())

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, count)):
            group.create_task(work())


_TEXTS: Final = ("text", "content", "reasoning_content", "reasoning")
"""Fields of a choice or its delta that hold text."""


class StreamRecorder:
    """Receives the pieces of a response as they arrive. Token counts are the server's; times are when its chunks
    arrive.

    Only a chunk with text or token ids counts as a piece. The first chunk of a chat and the chunk with the usage have
    neither.

    Args:
      due_s: Time when the request was to be sent, in seconds of `time.perf_counter`.
      sent_s: Time when it was sent.
    """

    def __init__(self, due_s: float, sent_s: float) -> None:
        self._trace = RequestTrace(sent_s, lag_s=max(0.0, sent_s - due_s))
        self._parser = EventParser()
        self._ended_s: float | None = None

    def feed(self, piece: bytes, now: float) -> None:
        """Receives bytes that arrived at `now`."""
        for event in self._parser.feed(piece):
            if event == b"[DONE]":
                self._ended_s = now
            else:
                self._read(event, now)

    def finish(self, response: Response, now: float) -> RequestTrace:
        """Returns the trace of an exchange that HTTP completed."""
        if response.status != 200:
            return self.fail(http_failure(response), now)
        if self._trace.failure is None and self._ended_s is None:
            return self.fail("the stream ended without [DONE]", now)
        self._trace.end_s = now if self._trace.failure or self._ended_s is None else self._ended_s
        return self._trace

    def fail(self, reason: str, now: float) -> RequestTrace:
        """Returns the trace of an exchange that failed; an error in the stream itself takes precedence."""
        self._trace.failure = self._trace.failure or reason
        self._trace.end_s = now
        return self._trace

    def _read(self, event: bytes, now: float) -> None:
        trace = self._trace
        try:
            chunk = orjson.loads(event)
            if chunk.get("choices"):
                self._read_choice(chunk["choices"][0], now)
            if usage := chunk.get("usage"):
                trace.prompt_tokens, trace.output_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
            if "error" in chunk:
                trace.failure = f"error in the stream: {error_message(chunk)}"
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
            trace.failure = "an event of the stream is not a completion chunk"

    def _read_choice(self, choice: Mapping[str, Any], now: float) -> None:
        trace, delta = self._trace, choice.get("delta") or choice
        if choice.get("finish_reason"):
            trace.last_s = now
        has_text = choice.get("token_ids") or any(delta.get(name) for name in _TEXTS)
        if has_text or (trace.last_s and not trace.token_times_s):
            trace.token_times_s.append(now)


_MAX_LAG_MS: Final = 20.0
"""Lag in milliseconds above which the report warns that the client itself was late."""

_TIMES: Final = {
    "ttft_ms": "time to first token",
    "itl_ms": "between tokens (ITL)",
    "tpot_ms": "per token after the first (TPOT)",
    "e2e_ms": "whole request (E2E)",
}


def summarize(traces: Sequence[RequestTrace], seconds: float, num_planned: int, objective: Objective) -> dict[str, Any]:
    """Returns all numbers of a result. Rates and times include only successful requests.

    Args:
      traces: Traces of the requests that have ended, successful or not.
      seconds: Time from the first request to the end of the last one.
      num_planned: Number of requests of the benchmark.
      objective: Latency objective; an empty one reports no goodput.
    """
    done = [trace for trace in traces if trace.failure is None]
    failures = Counter(trace.failure for trace in traces if trace.failure is not None)
    counts = {"planned": num_planned, "completed": len(done), "failed": len(traces) - len(done)}
    uncounted = sum(trace.output_tokens is None or trace.prompt_tokens is None for trace in done)
    inputs = None if uncounted else sum(trace.prompt_tokens or 0 for trace in done)
    outputs = None if uncounted else sum(trace.output_tokens or 0 for trace in done)
    return {
        "duration_s": seconds,
        "requests": {**counts, "unfinished": num_planned - len(traces), "without_usage": uncounted},
        "failures": dict(failures.most_common()),
        "requests_per_s": len(done) / seconds,
        "input_tokens": inputs,
        "output_tokens": outputs,
        "input_tokens_per_s": None if inputs is None else inputs / seconds,
        "output_tokens_per_s": None if outputs is None else outputs / seconds,
        **latencies_ms(done),
        "goodput": _goodput(traces, seconds, objective),
        "client_lag_ms": max((trace.lag_s * 1e3 for trace in traces), default=0.0),
    }


def _goodput(traces: Sequence[RequestTrace], seconds: float, objective: Objective) -> Mapping[str, Any] | None:
    if not objective:
        return None
    met = sum(meets(trace, objective) for trace in traces)
    return {
        "objective": _shown(objective),
        "requests": met,
        "share": met / len(traces) if traces else None,
        "requests_per_s": met / seconds,
    }


def _shown(objective: Objective) -> str:
    return " ".join(f"{name}:{limit:g}" for name, limit in objective.items())


def tables(title: str, result: Mapping[str, Any], interrupted: bool) -> Group:
    """Returns the tables that are printed."""
    columns = ["mean", "p50", "p90", "p99", "max"]
    rows = [[name, *(milliseconds(pick(result, key, column)) for column in columns)] for key, name in _TIMES.items()]
    rates, times = make_table([""], _rate_rows(result)), make_table(columns, rows, "milliseconds")
    return titled(title, [rates, times], [*interruption(interrupted), *_notes(result)])


def _rate_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    requests = result["requests"]
    yield "requests completed", f"{requests['completed']:,} of {requests['planned']:,}"
    if requests["failed"]:
        yield "requests failed", f"{requests['failed']:,}"
    yield "duration", f"{number(result['duration_s'], 2)} s"
    yield "requests/s", number(result["requests_per_s"], 2)
    yield "input tokens/s", shown_rate(result["input_tokens_per_s"])
    yield "output tokens/s", shown_rate(result["output_tokens_per_s"])
    if goodput := result["goodput"]:
        share = "–" if goodput["share"] is None else f"{100 * goodput['share']:.0f} %"
        yield f"goodput, requests/s ({goodput['objective']})", f"{number(goodput['requests_per_s'], 2)}, {share}"


def _notes(result: Mapping[str, Any]) -> Iterator[str]:
    for reason, count in result["failures"].items():
        yield f"{count:,} × {reason}"
    if result["requests"]["without_usage"]:
        yield "the server does not report `usage` in its streams, so tokens per second are not known"
    if result["client_lag_ms"] > _MAX_LAG_MS:
        yield f"this client sent a request up to {result['client_lag_ms']:,.0f} ms late: its machine is too busy"
