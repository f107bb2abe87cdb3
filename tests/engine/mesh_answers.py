"""Prints a model's results on a mesh as JSON; a program, since a process has one number of CPU devices.

JAX_NUM_CPU_DEVICES=8 python mesh_answers.py DATA MODEL CHUNK [int8|int4|window|parts|heads G]

"int8" is the dtype of matrices, and of the attention window with "window". With "parts" there are decode steps of some
slots of each device, as on TPUs. "int4" is the dtype of the matrices of a wider model with random weights. With "heads"
a model with G key heads and random weights replaces the golden one.
"""

import json
import sys
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from roost.engine import (
    EngineConfig,
    EngineCore,
    MeshShape,
    ModelSource,
    PrefixCache,
    Request,
    SamplingParams,
    load_runner,
    open_model,
)
from roost.engine.devices import platform
from roost.engine.scheduling.scheduler import Scheduler
from roost.engine.types.output_constraint import TokenMask, mask_of_ids
from test_resume import TINY_MODEL, Received, prompt, run

SLOTS = 5
"""Number of slots, which is no multiple of the devices."""


class Dictation:
    """Output constraint that allows one token after the other."""

    def __init__(self, *tokens: int) -> None:
        self._left = list(tokens)

    def is_ready(self, wait_s: float) -> bool:
        return True

    def fill_mask(self, mask: TokenMask) -> None:
        mask[:] = mask_of_ids(self._left[:1], len(mask))

    def advance(self, token_id: int) -> None:
        self._left.remove(token_id)


def requests() -> list[Request]:
    """Returns more requests than there are slots, with every feature of a step."""

    def ask(name: str, *parts: tuple[int, int], fork_of: str | None = None, **fields: Any) -> Request:
        params = SamplingParams(**{"max_tokens": 6, "temperature": 0.0, "logprobs": 3, **fields})
        constraint = Dictation(7, 300, 8) if name == "dictated" else None
        return Request(name, prompt(*parts), params, fork_of=fork_of, constraint=constraint)

    return [
        ask("greedy", (1, 300)),
        ask("short", (2, 1), max_tokens=20),
        ask("scored", (3, 150), prompt_logprobs=2, max_tokens=1),
        ask("drawn", (4, 70), temperature=1.2, seed=3, max_tokens=12),
        ask("fork", (4, 70), temperature=1.2, seed=4, max_tokens=12, fork_of="drawn"),
        ask("penalized", (5, 64), repetition_penalty=1.3, frequency_penalty=0.5, max_tokens=12),
        ask("cut", (6, 40), temperature=0.9, top_k=5, top_p=0.8, seed=9),
        ask("dictated", (7, 20), max_tokens=3),
        *(ask(f"crowd {i}", (8 + i, 65 + i)) for i in range(6)),
    ]


def as_lists(told: Received) -> list[Any]:
    return [told.tokens, [entry and [entry.logprob, [list(pair) for pair in entry.top]] for entry in told.logprobs]]


def with_key_heads(heads: int) -> ModelSource:
    """Returns the golden model's shape with several key heads, and random weights."""
    return ModelSource("many", replace(open_model(str(TINY_MODEL)).config, num_key_heads=heads), None, ())


def wide() -> ModelSource:
    """Returns a model with widths of whole groups of int4 on each of two devices, and random weights."""
    config = replace(open_model(str(TINY_MODEL)).config, width=128, lru_width=128, mlp_width=256)
    return ModelSource("wide", config, None, ())


def answers(
    shards: MeshShape,
    chunk: int,
    quantize: str | None = None,
    kv_dtype: str | None = None,
    *,
    source: ModelSource | None = None,
) -> dict[str, Any]:
    """Returns tokens and log-probabilities of all requests together, then of some again, from the prefix cache."""
    config = EngineConfig(
        SLOTS, prefill_chunk=chunk, dtype="float32", shards=shards, quantize=quantize, kv_dtype=kv_dtype
    )
    runner = load_runner(source or open_model(str(TINY_MODEL)), config)
    cache = PrefixCache(runner.served.config.window, 10**9)
    core = EngineCore(Scheduler(runner.served.slots, 100, runner.limits, cache=cache), runner)
    told = run(core, *requests(), stagger=1)
    again = run(core, *[r for r in requests() if r.id in ("greedy", "short", "crowd 3")])
    found = {name: as_lists(one) for name, one in told.items()} | {f"{n}, again": as_lists(x) for n, x in again.items()}
    cached = {name: one.num_cached for name, one in again.items()}
    return {
        "answers": found,
        "cached": cached,
        "compiles": runner.compiles_since_ready,
        "decode": list(runner.executor.programs.decode),
    }


def answers_in_parts(shards: MeshShape, chunk: int) -> dict[str, Any]:
    """Returns the same as `answers`, from decode steps of one slot of each device and of all slots."""
    in_parts = replace(platform.CPU_MESH, sizes=platform.StepSizes((1,)))
    with patch.object(platform, "CPU_MESH", in_parts):
        return answers(shards, chunk)


if __name__ == "__main__":
    data, model, chunk = map(int, sys.argv[1:4])
    shape, more = MeshShape(data, model), sys.argv[4:]
    match more:
        case ["parts"]:
            found = answers_in_parts(shape, chunk)
        case ["window"]:
            found = answers(shape, chunk, kv_dtype="int8")
        case ["int4"]:
            found = answers(shape, chunk, "int4", source=wide())
        case ["heads", heads]:
            found = answers(shape, chunk, source=with_key_heads(int(heads)))
        case _:
            found = answers(shape, chunk, *more)
    print(json.dumps(found))
