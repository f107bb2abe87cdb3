"""Measures speculative decoding: tokens per second of an engine with drafts and without, in turns.

    python benchmarks/speculation.py [--model demo] [--quantize int8] [--streams 1 4] [--tokens 96] [--rounds 3]

Two kinds of prompts: "copy" asks for a text that the prompt has, "new" for one that it has not. Models without a
tokenizer (`random:CONFIG.json`) get random tokens, once repeated and once not; what they generate is not language, so
only the greedy cycles that they fall into are drafted. Each kind runs greedily, and sampled at temperature 1.

One engine serves all runs, first without drafts and then with them (A/B/A/B), so that noise of the machine meets both.
The outputs are compared: a difference is an error. Times are from the first step to the last, prefill included.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from git_commit import commit
from markdown_page import table, where
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
from roost.server.commands.bench.environment import machine, now
from roost.server.model_hub import find_model
from roost.server.text.served_model import open_tokenizer

LIST = "apples, pears, plums, cherries, oranges, lemons, figs, dates, grapes, melons"
PROMPTS = {"copy": f"Repeat this list word by word: {LIST}.\n{LIST}. {LIST}.\n", "new": "Once upon a time"}
TEMPERATURES = (0.0, 1.0)


class Run(NamedTuple):
    """Outputs and numbers of one run."""

    tokens: list[tuple[int, ...]]
    seconds: float
    drafted: int
    accepted: int

    @property
    def speed(self) -> float:
        """Tokens per second of all streams together."""
        return sum(map(len, self.tokens)) / self.seconds


def prompts_of(model: str) -> dict[str, tuple[int, ...]]:
    """Returns the tokens of each kind of prompt."""
    if not model.startswith("random:"):
        tokenizer = open_tokenizer(find_model(model))
        return {kind: tuple(tokenizer.encode(text, control_tokens=False)) for kind, text in PROMPTS.items()}
    ids = np.random.default_rng(0).integers(3, 200, 40).tolist()
    return {"copy": (*ids, *ids), "new": tuple(ids)}


def run(runner: ModelRunner, requests: Sequence[Request], *, drafts: bool) -> Run:
    """Runs requests together."""
    limits = runner.limits if drafts else replace(runner.limits, speculation=None)
    core = EngineCore(Scheduler(runner.slots, len(requests), limits), runner)
    tokens: dict[str, list[int]] = {request.id: [] for request in requests}
    for request in requests:
        core.add(request)
    start = time.perf_counter()
    while not core.is_idle:
        for name, output in core.step():
            tokens[name] += output.token_ids
    seconds, counts = time.perf_counter() - start, core.stats.drafts
    drafted, accepted = (0, 0) if counts is None else (counts.tokens, sum(counts.accepted))
    return Run([tuple(each) for each in tokens.values()], seconds, drafted, accepted)


def measure(
    runner: ModelRunner, prompt: Sequence[int], temperature: float, streams: int, options: argparse.Namespace
) -> list[str]:
    """Returns the row of a table."""
    requests = [
        Request(str(seed), prompt, SamplingParams(max_tokens=options.tokens, temperature=temperature, seed=seed))
        for seed in range(streams)
    ]
    runs = [(run(runner, requests, drafts=False), run(runner, requests, drafts=True)) for _ in range(options.rounds)]
    assert all(off.tokens == on.tokens for off, on in runs), "drafts have changed tokens"
    off, on = (statistics.median(each.speed for each in side) for side in zip(*runs, strict=True))
    ratios = [with_.speed / without.speed for without, with_ in runs]
    last = runs[-1][1]
    accepted = f"{last.accepted} of {last.drafted}"
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
    return [f"{temperature:g}", str(streams), f"{off:.1f}", f"{on:.1f}", spread, accepted]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures speculative decoding.")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--quantize", choices=["int8"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    slots = max(4, *options.streams)
    config = EngineConfig(slots, prefill_chunk=64, quantize=options.quantize, speculation=Speculation())
    runner = load_runner(find_model(options.model), config)
    print(f"{options.model}, {options.quantize or 'as stored'}; {where(machine())}; {now()}; {commit()}\n")
    heads = ["prompt", "temperature", "streams", "tokens/s without", "with", "ratio (least–most)", "accepted"]
    rows = [
        [kind, *measure(runner, prompt, temperature, streams, options)]
        for kind, prompt in prompts_of(options.model).items()
        for temperature in TEMPERATURES
        for streams in options.streams
    ]
    print(table(heads, rows))


if __name__ == "__main__":
    main()
