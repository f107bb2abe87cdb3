"""`roost bench serve`: measures any server with OpenAI's API from the client's side."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ....client.http_client import ClientError, HttpClient
from ....client.openai_server import first_model, server_version
from ....terminal.failure import INTERRUPTED_STATUS, CommandError
from ..latency import RequestTrace
from ..progress import Advance, progress_bar
from ..report import Outputs, opening, write_file
from ..workload import poisson_times
from .load_generator import send_at, send_in_turn
from .options import ServeBenchOptions
from .requests import request_body
from .result import draw, summarize, tables
from .stream_recorder import StreamRecorder

_PATHS: Final = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


def bench_serve(options: ServeBenchOptions, outputs: Outputs) -> int:
    """Measures and reports.

    Returns:
      The exit status.

    Raises:
      SettingsError: The folder of an output does not exist.
      CommandError: The server cannot be reached, or responds to the first request with an error.
    """
    outputs.check()
    document = opening("serve", options.as_json())
    run = Run(options)
    interrupted = False
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(run.all())
    except KeyboardInterrupt:
        interrupted = True
    if run.started_s is None:
        return INTERRUPTED_STATUS
    result = summarize(run.traces, run.seconds(), options)
    document |= {"server": run.server, "interrupted": interrupted, "result": result}
    title = title_of(run.server["model"], options)
    outputs.console().print(tables(title, result, interrupted))
    outputs.write_json(document)
    if outputs.svg is not None and (svg := draw(title, run.traces)) is not None:
        write_file("--svg", outputs.svg, svg)
    return INTERRUPTED_STATUS if interrupted else 0 if result["requests"]["completed"] else 1


class Run:
    """One run of the benchmark. Its results so far can be read at any time.

    Attributes:
      options: ServeBenchOptions of the benchmark.
      traces: Traces of the requests that have ended.
      started_s: Time when the first measured request was due, in seconds of `time.perf_counter`; None before.
      server: Model and version that the server reports.
    """

    def __init__(self, options: ServeBenchOptions) -> None:
        self.options = options
        self.traces: list[RequestTrace] = []
        self.started_s: float | None = None
        self.server: dict[str, Any] = {"model": options.model, "version": None}
        self._advance: Advance = lambda count: None

    def seconds(self) -> float:
        """Returns the time from the start to the last known end."""
        ends = [trace.end_s for trace in self.traces] or [time.perf_counter()]
        return max(max(ends) - (self.started_s or 0.0), 1e-9)

    async def all(self) -> None:
        """Queries the server, warms it up, and measures."""
        options = self.options
        self._client = HttpClient(options.address, options.api_key, options.timeout_s)
        try:
            self.server["version"] = await server_version(self._client)
            self.server["model"] = options.model or await first_model(self._client)
            await self._warm_up()
            await self._measure()
        finally:
            await self._client.close()

    async def _warm_up(self) -> None:
        rng = random.Random(f"warm-up {self.options.seed}")
        for body in self._bodies(self.options.warmup, rng):
            trace = await self._trace(body, time.perf_counter())
            if trace.failure is not None:
                raise CommandError(f"the first request failed: {trace.failure}{_advice(trace.failure, body)}")

    async def _measure(self) -> None:
        options = self.options
        rng = random.Random(options.seed)
        bodies = self._bodies(options.num_prompts, rng)

        async def send(number: int, due_s: float) -> None:
            self.traces.append(await self._trace(bodies[number], due_s))
            self._advance(1)

        with progress_bar("requests", options.num_prompts) as self._advance:
            self.started_s = time.perf_counter()
            if options.concurrency is not None:
                await send_in_turn(options.num_prompts, options.concurrency, send)
            else:
                await send_at(poisson_times(options.request_rate, options.num_prompts, rng), send)

    async def _trace(self, body: Mapping[str, Any], due_s: float) -> RequestTrace:
        recorder = StreamRecorder(due_s, time.perf_counter())
        try:
            response = await self._client.post(_PATHS[self.options.endpoint], body, recorder.feed)
        except ClientError as error:
            return recorder.fail(str(error), time.perf_counter())
        return recorder.finish(response, time.perf_counter())

    def _bodies(self, count: int, rng: random.Random) -> Sequence[Mapping[str, Any]]:
        return [request_body(self.options, self.server["model"], rng) for _ in range(count)]


def _advice(failure: str, body: Mapping[str, Any]) -> str:
    """Returns a hint if the server refused token ids."""
    if not isinstance(body.get("prompt"), list) or not failure.startswith(("HTTP 400", "HTTP 422")):
        return ""
    return "; see --vocab-size, and --prompt-text for a server that takes no token ids"


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Returns uvloop's factory if it is installed: uvloop takes much less time per event."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def title_of(model: str, options: ServeBenchOptions) -> str:
    """Returns a title that describes the load. Random prompts often end early, unless `ignore_eos` is set."""
    load = f"{options.request_rate:g} requests/s"
    if options.concurrency is not None:
        load = f"{options.concurrency} at a time"
    most = "" if options.ignore_eos else "at most "
    return f"{model}, {load}, {options.input_len} tokens in, {most}{options.output_len} out"
