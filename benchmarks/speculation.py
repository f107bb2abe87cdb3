"""Measures speculative decoding: tokens per second of an engine with drafts and without, in turns.

    python benchmarks/speculation.py [--model demo] [--quantize int8] [--streams 1 4] [--tokens 96] [--rounds 3]
        [--prompts copy new predicted edit schema] [--temperatures 0 1]

Kinds of prompts: "copy" asks for a text that the prompt has, "new" for one that it has not, and "schema" for JSON of a
schema that forces much of it. "predicted" is "new" with its own output as prediction, and "edit" with one in 16 tokens
of it replaced, as of a text that is changed here and there. Models without a tokenizer (`random:CONFIG.json`) get
random tokens, once repeated and once not; what they generate is not language, so without a prediction only the greedy
cycles that they fall into are drafted.
Each kind runs greedily, and sampled at temperature 1.

Two engines with the same programs serve a row's runs in turns, one without drafts and one with them, so that noise of
the machine meets both; every other round begins with drafts (A/B/B/A). As in a server, the engine remembers from run to
run whether drafts save time. The outputs are compared: a difference is an error. Their numbers, of all streams, are
those without drafts and with them in the last round. Times are from the first step to the last, prefill included.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from results_page import commit, table, where
from roost.engine import (
    EngineConfig,
    EngineCore,
    ModelRunner,
    Request,
    SamplingParams,
    Scheduler,
    Speculation,
    load_runner,
)
from roost.engine.types.config import MAX_PREDICTION
from roost.server.commands.bench.report import machine, now
from roost.server.constraints.grammar_compiler import GrammarCompiler
from roost.server.constraints.grammar_process import Grammar
from roost.server.constraints.grammar_spec import json_spec
from roost.server.constraints.grammar_worker.protocol import GrammarLimits
from roost.server.model_hub import find_model
from roost.server.text.served_model import open_tokenizer
from roost.server.text.tokenizer import Tokenizer

LIST = "apples, pears, plums, cherries, oranges, lemons, figs, dates, grapes, melons"
PROMPTS = {
    "copy": f"Repeat this list word by word: {LIST}.\n{LIST}. {LIST}.\n",
    "new": "Once upon a time",
    "schema": "Write a person as JSON:\n",
}
NAMES = ("first_name", "family_name", "date_of_birth", "street_address", "favourite_colour")
SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "string", "maxLength": 12} for name in NAMES},
    "required": list(NAMES),
    "additionalProperties": False,
}


FIRST = 200
"""First token of the first stream's prompt; each stream has its own, since equal rows of a step are computed once."""


class Run(NamedTuple):
    """Outputs and numbers of one run."""

    tokens: list[tuple[int, ...]]
    seconds: float
    outputs: int
    drafted: int
    accepted: int

    @property
    def speed(self) -> float:
        """Tokens per second of all streams together."""
        return sum(map(len, self.tokens)) / self.seconds


class Kind(NamedTuple):
    """A kind of prompts.

    Attributes:
      grammars: Grammars of the outputs without drafts and with them.
      replaced: Distance of two tokens of the prediction that are not those of the output; None without a prediction.
    """

    prompt: tuple[int, ...]
    grammars: tuple[Grammar | None, Grammar | None] = (None, None)
    end_token_ids: tuple[int, ...] = ()
    replaced: int | None = None


def kinds_of(model: str) -> dict[str, Kind]:
    """Returns the kinds of prompts by name."""
    if not model.startswith("random:"):
        tokenizer = open_tokenizer(find_model(model))
        prompts = {name: tuple(tokenizer.encode(text, control_tokens=False)) for name, text in PROMPTS.items()}
        schema = Kind(prompts["schema"], grammars_of(tokenizer), tokenizer.end_token_ids)
        return kinds_of_tokens(prompts["copy"], prompts["new"]) | {"schema": schema}
    ids = np.random.default_rng(0).integers(3, 200, 40).tolist()
    return kinds_of_tokens((*ids, *ids), tuple(ids))


def kinds_of_tokens(copy: tuple[int, ...], new: tuple[int, ...]) -> dict[str, Kind]:
    return {
        "copy": Kind(copy),
        "new": Kind(new),
        "predicted": Kind(new, replaced=MAX_PREDICTION + 1),
        "edit": Kind(new, replaced=16),
    }


def with_prediction(request: Request, output: Sequence[int], replaced: int) -> Request:
    """Returns the request with its output as prediction, in which each `replaced`-th token repeats the one before."""
    ids = [output[i - 1] if (i + 1) % replaced == 0 else token for i, token in enumerate(output)]
    return replace(request, predicted_token_ids=ids)


def grammars_of(tokenizer: Tokenizer) -> tuple[Grammar, Grammar]:
    """Returns the schema's grammar without and with forced tokens."""

    async def compiled(max_forced: int) -> Grammar:
        limits = GrammarLimits(max_forced=max_forced)
        return await GrammarCompiler(tokenizer, tokenizer.end_token_ids, limits=limits).compile(json_spec(SCHEMA))

    return asyncio.run(compiled(0)), asyncio.run(compiled(Speculation().num_tokens))


def core_of(runner: ModelRunner, *, drafts: bool) -> EngineCore:
    limits = runner.limits if drafts else replace(runner.limits, speculation=None)
    return EngineCore(Scheduler(runner.served.slots, runner.served.slots, limits), runner)


def run(core: EngineCore, requests: Sequence[Request], grammar: Grammar | None) -> Run:
    """Runs requests together, each with its own constraint if there is a grammar."""
    drafted, accepted = counts(core)
    tokens: dict[str, list[int]] = {request.id: [] for request in requests}
    for request in requests:
        core.add(request if grammar is None else replace(request, constraint=grammar.constraint()))
    start, outputs = time.perf_counter(), 0
    while not core.is_idle:
        for name, output in core.step():
            tokens[name] += output.token_ids
            outputs += 1
    seconds, (all_drafted, all_accepted) = time.perf_counter() - start, counts(core)
    own_tokens = [tuple(each) for each in tokens.values()]
    return Run(own_tokens, seconds, outputs, all_drafted - drafted, all_accepted - accepted)


def counts(core: EngineCore) -> tuple[int, int]:
    """Returns the numbers of drafted and of accepted tokens so far."""
    drafts = core.stats.drafts
    return (0, 0) if drafts is None else (drafts.tokens, sum(drafts.accepted))


def in_turns(plainly: Callable[[], Run], drafting: Callable[[], Run], *, swap: bool) -> tuple[Run, Run]:
    """Returns the results of both, of which the second one runs first if they swap."""
    if swap:
        after = drafting()
        return plainly(), after
    return plainly(), drafting()


def measure(
    runner: ModelRunner, kind: Kind, temperature: float, streams: int, options: argparse.Namespace
) -> list[str]:
    """Returns the row of a table."""
    params = SamplingParams(max_tokens=options.tokens, temperature=temperature, end_token_ids=kind.end_token_ids)
    requests = [Request(str(seed), (FIRST + seed, *kind.prompt), params.with_seed(seed)) for seed in range(streams)]
    without, with_ = core_of(runner, drafts=False), core_of(runner, drafts=True)
    plain, ahead = kind.grammars
    predicting = requests
    if kind.replaced is not None:
        outputs = run(without, requests, plain).tokens
        predicting = [with_prediction(*pair, kind.replaced) for pair in zip(requests, outputs, strict=True)]
    runs = [
        in_turns(partial(run, without, requests, plain), partial(run, with_, predicting, ahead), swap=index % 2 == 1)
        for index in range(options.rounds)
    ]
    assert all(off.tokens == on.tokens for off, on in runs), "drafts have changed tokens"
    off, on = (statistics.median(each.speed for each in side) for side in zip(*runs, strict=True))
    ratios = [drafting.speed / plainly.speed for plainly, drafting in runs]
    plainly, last = runs[-1]
    accepted = f"{last.accepted} of {last.drafted}"
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
    return [
        f"{temperature:g}",
        str(streams),
        f"{off:.1f}",
        f"{on:.1f}",
        spread,
        f"{plainly.outputs}, {last.outputs}",
        accepted,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures speculative decoding.")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--quantize", choices=["int8"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", nargs="+", default=["copy", "new", "predicted", "edit", "schema"])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    options = parser.parse_args()
    slots = max(4, *options.streams)
    config = EngineConfig(slots, prefill_chunk=64, quantize=options.quantize, speculation=Speculation())
    runner = load_runner(find_model(options.model), config)
    print(f"{options.model}, {options.quantize or 'as stored'}; {where(machine())}; {now()}; {commit()}\n")
    heads = [
        "prompt",
        "temperature",
        "streams",
        "tokens/s without",
        "with",
        "ratio (least–most)",
        "outputs",
        "accepted",
    ]
    rows = [
        [name, *measure(runner, kind, temperature, streams, options)]
        for name, kind in kinds_of(options.model).items()
        if name in options.prompts
        for temperature in options.temperatures
        for streams in options.streams
    ]
    print(table(heads, rows))


if __name__ == "__main__":
    main()
