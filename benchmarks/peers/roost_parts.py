"""Contestant without HTTP: the engine's bare loop, next to the bytes that it must read; and fresh processes.

`growth.py` and starts of `roost serve` are processes of their own.
"""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from protocol import Command, answer_all, draw_prompts, versions

BUFFER_BYTES = 2**30
READS = 5


class Engine:
    """The engine that `roost bench engine` runs."""

    def __init__(self, wanted: Mapping[str, Any]) -> None:
        from roost.engine import open_model
        from roost.server.commands.bench.engine import load
        from roost.server.settings import Settings

        settings = Settings(model=wanted["model"], slots=wanted["slots"], dtype="bfloat16", quantize="int8")
        source = open_model(settings.model)
        self.config = source.config
        self.threads = wanted["threads"]
        self.core = load(settings, source)
        self.name = 0

    def warm(self) -> None:
        self.decode(2, 16, 8, 0)

    def decode(self, rows: int, prompt: int, new: int, seed: int) -> Mapping[str, float]:
        """Requests that decode together, and the bytes that one step of theirs has to read."""
        from roost.server.commands.bench.engine import Driver, make_request, run_together, summarize

        driver = Driver(self.core)
        requests = []
        for ids in draw_prompts(rows, prompt, self.config.vocab_size, seed):
            self.name += 1
            requests.append(make_request(str(self.name), ids, None))
        run_together(driver, requests, new)
        found = summarize("decode", driver)
        driver.end()
        return {
            "decode_tokens_per_s": found["generated_tokens_per_s"],
            "step_ms": found["decode_step_ms"]["p50"],
        }

    def step(self, rows: int, prompt: int, new: int, seed: int) -> Mapping[str, float]:
        """Runs the same, next to the time to read weights and active state once, and nothing else."""
        found = self.decode(rows, prompt, new, seed)
        gigabytes = read_gigabytes_per_s(self.threads)
        needed = self.bytes_of_step(rows, prompt + new // 2)
        return {
            "step_ms": found["step_ms"],
            "limit_ms": needed / gigabytes / 1e6,
            "bytes": needed,
            "read_gigabytes_per_s": gigabytes,
        }

    def bytes_of_step(self, rows: int, length: int) -> int:
        """Returns the bytes of weights in int8 and of each row's state; only the filled part of rings counts."""
        config = self.config
        recurrent = config.lru_width * (4 + 2 * (config.conv_width - 1))
        ring = 2 * 2 * config.head_dim * min(length, config.window)
        layers = [recurrent if block == "recurrent" else ring for block in config.block_types]
        return int(config.num_parameters + rows * sum(layers))


def read_gigabytes_per_s(threads: int) -> float:
    """Returns the bandwidth of several threads that read uncached memory; the median of some trials."""
    pieces = np.array_split(np.ones(BUFFER_BYTES // 4, np.int32), threads)
    rates = []
    for _ in range(READS):
        readers = [threading.Thread(target=piece.max) for piece in pieces]
        began = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        rates.append(BUFFER_BYTES / 1e9 / (time.perf_counter() - began))
    return statistics.median(rates)


def length(arguments: Sequence[str], concurrency: int, early: int, late: int) -> Mapping[str, float]:
    """Returns speed and memory over the stretches that start at `early` generated tokens and end at `late`."""
    options = ["--concurrency", str(concurrency), "--max-length", str(late), "--json", "-"]
    command = [sys.executable, str(Path(__file__).parents[1] / "growth.py"), *arguments, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    stretches = {stretch["length"]: stretch for stretch in json.loads(done.stdout)["result"]["stretches"]}
    first, last = stretches[2 * early], stretches[late]
    return {
        "early_tokens_per_s": first["tokens_per_s"],
        "late_tokens_per_s": last["tokens_per_s"],
        "early_gb": first["resident_bytes"] / 1e9,
        "late_gb": last["resident_bytes"] / 1e9,
    }


def become_ready(arguments: Sequence[str], cache: str) -> Mapping[str, float]:
    """Returns the seconds from the start of `roost serve` until it is ready, with a folder of compiled programs."""
    from roost_http import RoostServer

    os.environ["ROOST_COMPILE_CACHE"] = cache
    server = RoostServer(arguments, 2)
    server.close()
    return {"seconds": server.ready_s - server.started_s}


def start(wanted: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Command]]:
    facts: dict[str, Any] = {"versions": versions(("roost", "jax"))}
    if "model" not in wanted:
        return facts, {"warm": lambda: None, "length": length, "start": become_ready}
    engine = Engine(wanted)
    facts |= {"parameters": engine.config.num_parameters, "dtype": "int8"}
    return facts, {"warm": engine.warm, "decode": engine.decode, "step": engine.step}


if __name__ == "__main__":
    answer_all(start)
