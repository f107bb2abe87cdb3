"""Measures speed against generated length, beside a transformer of the same size, and draws the chart of it.

    .venv/bin/python benchmarks/length_chart.py --json benchmarks/length.json --results benchmarks/length.md

Roost is a `roost serve` process with its default options, and a client over HTTP: all streams start from a short
prompt and generate up to the last length. The transformer is a Llama in llama.cpp, as a loop around the library, which
is its best case. Its sequences get their context from a prompt, since generating that far would take it very long.
`--pairs int8` takes about five minutes on two cores, `--pairs bf16` about eight. A second run keeps the curves of the
first one in the file.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson
from roost.server.commands.bench.report import opening

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent
sys.path[:0] = [str(HERE / "peers"), str(ROOT / "tools")]

from contestants import Contestant  # noqa: E402
from draw_pictures import draw_lengths  # noqa: E402
from environments import ENVIRONMENTS, WORK, prepare  # noqa: E402
from measure import pin, write_configs  # noqa: E402
from models import LLAMA, SMALL  # noqa: E402
from results_page import commit  # noqa: E402
from roost_at_length import PROMPT  # noqa: E402

PEERS: Final = HERE / "peers"
CHART: Final = HERE.parent / "docs/pictures/length.svg"
LIMIT_S: Final = 1800.0

LENGTHS: Final = (256, 512, 1024, 2048, 4096, 8192, 16_384)

PAIRS: Final[Mapping[str, Sequence[str]]] = {"int8": ("int8", "Q8_0"), "bf16": ("bf16", "BF16")}
"""Number formats of Roost and of llama.cpp that are compared."""


def main() -> None:
    options = arguments()
    document = opening("length", {name: getattr(options, name) for name in ("rows", "lengths", "window", "threads")})
    document |= {"tree": commit(), "curves": kept_curves(options.json, document["options"])}
    WORK.mkdir(parents=True, exist_ok=True)
    write_configs(WORK)
    pin(options.threads)
    for pair in options.pairs:
        ours, theirs = PAIRS[pair]
        document["curves"][f"Roost, {ours}"] = measure(roost(ours), options)
        write(document, options.json)
        document["curves"][f"Llama in llama.cpp, {theirs}"] = measure(llama(theirs, options), options)
        write(document, options.json)
    print(table(document))
    if options.results:
        options.results.write_text(page(document))
        CHART.write_text(draw_lengths(document))


def write(document: Mapping[str, Any], path: Path) -> None:
    path.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="everything that was measured")
    parser.add_argument("--results", type=Path, metavar="FILE.md", help="a page; the chart goes to docs/pictures")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS), help="number formats (all)")
    parser.add_argument("--rows", type=int, default=8, metavar="N", help="streams at a time (8)")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), metavar="N", help="ascending")
    parser.add_argument("--window", type=int, default=64, metavar="N", help="least tokens that count per length (64)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="cores that both get (2)")
    return parser.parse_args()


def kept_curves(path: Path, options: Mapping[str, Any]) -> dict[str, Sequence[float]]:
    """Returns the curves of an earlier run with the same options."""
    before = orjson.loads(path.read_bytes()) if path.is_file() else {}
    return before["curves"] if before.get("options") == options else {}


def roost(kind: str) -> Contestant:
    """Starts a server with its default options."""
    numbers = ["--dtype", "bfloat16", *(["--quantize", "int8"] if kind == "int8" else [])]
    wanted = {"arguments": [f"random:{WORK}/small/config.json", *numbers], "vocab_size": SMALL.vocab_size}
    command = [sys.executable, str(PEERS / "roost_at_length.py")]
    return contestant(command, wanted, f"roost-{kind}-at-length")


def llama(kind: str, options: argparse.Namespace) -> Contestant:
    """Starts llama.cpp, with room for all streams at the last length."""
    wanted = {
        "folder": f"{WORK}/{LLAMA.name}",
        "kind": kind,
        "rows": options.rows,
        "length": max(options.lengths) + options.window,
        "threads": options.threads,
    }
    command = [str(prepare(ENVIRONMENTS["llama_cpp"])), str(PEERS / "llamacpp_at_length.py")]
    return contestant(command, wanted, f"llama-{kind}-at-length")


def contestant(command: Sequence[str], wanted: Mapping[str, Any], name: str) -> Contestant:
    print(f"length: {name}", file=sys.stderr, flush=True)
    environment = {"JAX_PLATFORMS": "cpu", "ROOST_COMPILE_CACHE": f"{WORK}/compiled/{name}"}
    return Contestant(command, wanted, environment, WORK / f"{name}.log")


def measure(contestant: Contestant, options: argparse.Namespace) -> Sequence[float]:
    """Returns the tokens per second of all streams at each length."""
    try:
        contestant.load(LIMIT_S)
        contestant.do("warm", LIMIT_S)
        grown = contestant.do(
            "grow", LIMIT_S, rows=options.rows, lengths=options.lengths, window=options.window, seed=0
        )
    finally:
        contestant.close()
    return list(grown["tokens_per_s"])


def page(document: Mapping[str, Any]) -> str:
    """Returns the page for readers, with a link to the chart beside it."""
    machine, options = document["machine"], document["options"]
    where = f"{machine['cpu']}, {options['threads']} cores, load average {machine['load_average']:.2f} before"
    return f"""\
# Speed against generated length

    python benchmarks/length_chart.py --json benchmarks/length.json --results benchmarks/length.md

![Tokens per second of Roost and of a Llama of the same size, against generated tokens](../docs/pictures/length.svg)

**What**: tokens per second of {options["rows"]} greedy streams together, once each has this many tokens. Both models
have 110 million parameters: a RecurrentGemma with a window of 2,048 tokens, and a Llama.

**How**: Roost is a `roost serve` process with its default options, measured by a client over HTTP that shares its
cores. Its streams start from {PROMPT} tokens and generate all the way. A Llama runs in llama.cpp as a loop around the
library, without HTTP. One of its sequences reads a prompt of the length, and the others get copies of its KV cache.
Speed counts over the last eighth of a length, at least {options["window"]} tokens; for llama.cpp over
{options["window"]} steps in the middle of it. One round.

{table(document)}

**Where**: {where}; {document["started"][:10]}, tree {document["tree"]}.

**Reading**: a step of Roost reads the weights and a state of fixed size. The state's window is full from token 2,048
on; from there on, length changes nothing. A step of a transformer also reads the KV cache of every stream.
"""


def table(document: Mapping[str, Any]) -> str:
    """Returns the speeds in Markdown."""
    lengths = document["options"]["lengths"]
    rows = [["tokens/s at", *(f"{length:,}" for length in lengths)], ["---"] * (len(lengths) + 1)]
    rows += [[title, *(f"{speed:,.0f}" for speed in curve)] for title, curve in document["curves"].items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
