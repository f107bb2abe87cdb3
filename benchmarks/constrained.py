"""Measures the cost of structured output, for constrained requests and for those beside them.

    python benchmarks/constrained.py [--model demo] [--requests 32] [--constrained 8] [--tokens 128] [--json]

First the masks alone: the time to compile a grammar, and of `fill_mask` and `advance` for each token of a typical
output, with synthetic vocabularies of 32,000 and 256,000 tokens. Then an engine without HTTP: requests run together
until each has a number of tokens, without any constraint, with constraints that allow everything, and with a JSON
schema; rounds alternate between the three. Reported is the time per token of the requests that are unconstrained in all
three: the mean of each request, the median of these, and the median over rounds. The constraint that allows everything
has practically no cost of masks, so it shows what the engine pays for the exchange with the host.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson
from rich.console import Console
from rich.table import Table
from roost.engine import EngineCore, Request, SamplingParams, open_model
from roost.engine.types.output_constraint import Constraint, TokenMask, words_of_mask
from roost.server.commands.bench.engine.driver import Driver, run_together
from roost.server.commands.bench.engine.loading import load
from roost.server.constraints.grammar import Grammar, GrammarCompiler, json_spec
from roost.server.settings import Settings
from roost.server.text.served_model import open_tokenizer
from roost.server.text.synthetic_tokenizer import synthetic_tokenizer
from roost.server.text.tokenizer import Tokenizer

VOCABULARIES = (32_000, 256_000)
ROUNDS, REPEATS = 11, 20

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "email": {"type": "string"},
        "tags": {"type": "array", "items": {"enum": ["new", "paid", "late"]}},
        "address": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
    "required": ["name", "age", "email", "tags", "address"],
    "additionalProperties": False,
}
ANSWER = {
    "name": "Maria da Silva",
    "age": 41,
    "email": "maria@example.org",
    "tags": ["new", "paid"],
    "address": {"city": "Porto"},
}
PEOPLE = {"type": "array", "items": PERSON, "minItems": 50}
"""Text longer than any output here, so that no output ends early."""


class MaskTimes(NamedTuple):
    """Results for one vocabulary; times in milliseconds."""

    vocabulary: int
    tokens: int
    compile_ms: float
    fill_mean_ms: float
    fill_worst_ms: float
    advance_mean_ms: float


class Neighbours(NamedTuple):
    """Results for unconstrained requests."""

    constraint: str
    constrained: int
    free: int
    ms_per_token: float


class Anything:
    """Constraint that allows all tokens."""

    def is_ready(self, wait_s: float) -> bool:
        return True

    def fill_mask(self, mask: TokenMask) -> None:
        mask.fill(2**32 - 1)

    def advance(self, token_id: int) -> None:
        pass


def compiled(tokenizer: Tokenizer, schema: dict[str, Any]) -> tuple[Grammar, float]:
    """Compiles a grammar; returns it and the seconds it took once the vocabulary was known."""

    async def compile_() -> tuple[Grammar, float]:
        compiler = GrammarCompiler(tokenizer, tokenizer.end_token_ids)
        await compiler.compile(json_spec({"type": "null"}))
        start = time.perf_counter()
        grammar = await compiler.compile(json_spec(schema))
        return grammar, time.perf_counter() - start

    return asyncio.run(compile_())


def follow(constraint: Constraint, token_ids: Sequence[int], mask: TokenMask) -> tuple[list[float], list[float]]:
    """Returns the seconds of each `fill_mask`, and of each `advance`."""
    fills, advances = [], []
    for token_id in token_ids:
        start = time.perf_counter()
        constraint.fill_mask(mask)
        filled = time.perf_counter()
        constraint.advance(token_id)
        fills.append(filled - start)
        advances.append(time.perf_counter() - filled)
    return fills, advances


def measure_masks(vocab_size: int) -> MaskTimes:
    tokenizer = synthetic_tokenizer(vocab_size)
    grammar, seconds = compiled(tokenizer, PERSON)
    token_ids = tokenizer.encode(json.dumps(ANSWER), control_tokens=False)
    mask = np.zeros(words_of_mask(vocab_size), np.uint32)
    runs = [follow(grammar.constraint(), token_ids, mask) for _ in range(REPEATS)]
    fills = [statistics.median(times) for times in zip(*(fills for fills, _ in runs), strict=True)]
    advances = [statistics.median(times) for times in zip(*(advances for _, advances in runs), strict=True)]
    return MaskTimes(
        vocabulary=vocab_size,
        tokens=len(token_ids),
        compile_ms=1e3 * seconds,
        fill_mean_ms=1e3 * statistics.mean(fills),
        fill_worst_ms=1e3 * max(fills),
        advance_mean_ms=1e3 * statistics.mean(advances),
    )


def run_once(core: EngineCore, name: str, constraints: Sequence[Constraint | None], num_tokens: int) -> float:
    """Returns the median seconds per token of the unconstrained requests.

    Args:
      name: Name of the run, different from all previous ones.
      constraints: Constraints of the requests; unconstrained requests come last.
    """
    rng = np.random.default_rng(1)
    prompts = rng.integers(10, 200, (len(constraints), 32)).tolist()
    driver = Driver(core)
    requests = [
        Request(f"{name}-{index}", tuple(prompt), SamplingParams(max_tokens=None, seed=index), constraint=constraint)
        for index, (prompt, constraint) in enumerate(zip(prompts, constraints, strict=True))
    ]
    run_together(driver, requests, num_tokens)
    per_token = [trace.tpot_s for trace in driver.traces()[-num_free(constraints) :]]
    driver.end()
    return statistics.median(seconds for seconds in per_token if seconds is not None)


def num_free(constraints: Sequence[Constraint | None]) -> int:
    return sum(constraint is None for constraint in constraints)


def measure_neighbours(core: EngineCore, grammar: Grammar, options: argparse.Namespace) -> Iterator[Neighbours]:
    """Returns the medians of alternating rounds, after one round that is not counted."""
    free, constrained = options.requests - options.constrained, options.constrained
    kinds: dict[str, Callable[[], list[Constraint | None]]] = {
        "none": lambda: [None] * options.requests,
        "anything": lambda: [Anything()] * constrained + [None] * free,
        "JSON schema": lambda: [grammar.constraint() for _ in range(constrained)] + [None] * free,
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(ROUNDS + 1):
        for kind, make in kinds.items():
            seconds[kind].append(run_once(core, f"{kind}-{number}", make(), options.tokens))
    for kind, times in seconds.items():
        yield Neighbours(kind, 0 if kind == "none" else constrained, free, 1e3 * statistics.median(times[1:]))


def as_table(rows: Sequence[NamedTuple], title: str) -> Table:
    table = Table(title=title)
    for name in rows[0]._fields:
        table.add_column(name.replace("_ms", " ms").replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
    return table


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="demo")
    arguments.add_argument("--requests", type=int, default=32)
    arguments.add_argument("--constrained", type=int, default=8)
    arguments.add_argument("--tokens", type=int, default=128)
    arguments.add_argument("--json", action="store_true", help="one line for each measure")
    options = arguments.parse_args()
    if not 0 < options.constrained < options.requests:
        arguments.error("--constrained must leave some of --requests free")
    masks = [measure_masks(vocab_size) for vocab_size in VOCABULARIES]
    settings = Settings(model=options.model)
    source = open_model(settings.model)
    grammar, _ = compiled(open_tokenizer(source), PEOPLE)
    core = load(settings, source, max_queue=options.requests, slots=options.requests)
    neighbours = list(measure_neighbours(core, grammar, options))
    if options.json:
        rows: list[Any] = [*masks, *neighbours]
        for row in rows:
            print(orjson.dumps(row._asdict()).decode())
        return 0
    console = Console(width=120)
    console.print(as_table(masks, "masks, per token"))
    console.print(as_table(neighbours, f"{source.name}: {options.requests} requests, {options.tokens} tokens each"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
