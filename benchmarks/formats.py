"""Compares the decode steps of formats of the weights: milliseconds per token, in turns.

    python benchmarks/formats.py [--model random:2b] [--formats int8 int4] [--rows 1 8] [--tokens 24] [--rounds 5]

The models of all formats are loaded together, as the Python API loads them. In each round each of them generates
greedily for some requests at a time; the time of a few tokens is subtracted from that of more, so that prefill and
start are not counted.
"""

import argparse
import statistics
import time
from collections.abc import Mapping

from results_page import commit, table, where
from roost import LLM, SamplingParams
from roost.server.commands.bench.report import machine, now

FEW = 4
"""Tokens whose time is subtracted."""


def step_ms(llm: LLM, rows: int, tokens: int) -> float:
    """Returns the milliseconds of one step of the given number of requests."""
    few, more = (generation_s(llm, rows, count) for count in (FEW, FEW + tokens))
    return 1e3 * (more - few) / tokens


def generation_s(llm: LLM, rows: int, tokens: int) -> float:
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    start = time.perf_counter()
    llm.generate([[5 + row, 6, 7] for row in range(rows)], params)
    return time.perf_counter() - start


def line(rows: int, steps: Mapping[str, list[float]]) -> list[str]:
    """Returns a line of the table: medians, and the ratios of the first format to the others within a round."""
    first, *others = steps.values()
    ratios = [sorted(a / b for a, b in zip(first, other, strict=True)) for other in others]
    shown = [f"{statistics.median(each):.2f} ({each[0]:.2f}–{each[-1]:.2f})" for each in ratios]
    return [str(rows), *(f"{statistics.median(each):.1f}" for each in steps.values()), *shown]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:2b", help="what `roost serve` takes (random:2b)")
    parser.add_argument("--formats", nargs="+", default=["int8", "int4"], metavar="NAME", help="`--quantize` of each")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], metavar="N", help="requests at a time (1 8)")
    parser.add_argument("--tokens", type=int, default=24, metavar="N", help="tokens of each request (24)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (5)")
    options = parser.parse_args()
    host = machine()
    models = {
        name: LLM(options.model, dtype="bfloat16", quantize=name, slots=max(options.rows)) for name in options.formats
    }
    lines = []
    for rows in options.rows:
        steps: dict[str, list[float]] = {name: [] for name in models}
        for llm in models.values():
            generation_s(llm, rows, FEW)
        for _ in range(options.rounds):
            for name, llm in models.items():
                steps[name].append(step_ms(llm, rows, options.tokens))
        lines.append(line(rows, steps))
    first, *others = options.formats
    print(f"`{options.model}`, {now()[:10]}, {commit()}: {where(host)}.\n")
    print(table(["requests", *(f"{name}, ms" for name in models), *(f"{first} / {each}" for each in others)], lines))


if __name__ == "__main__":
    main()
