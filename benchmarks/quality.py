"""Measures how a precision changes the demo model: next-token distributions compared with float32, and scores.

    python benchmarks/quality.py CORPUS [--texts 200] [--json]

CORPUS is the folder of the demo corpus (`chat-val.jsonl.xz`, `tinystories-val.jsonl.xz`, `demo-eval-public.jsonl`). KL
is the mean over all tokens of the divergence of a precision's distribution from float32's, in nats; `same` is the share
of tokens with the same argmax. Scores are those of tools/eval_demo.py with a server.
"""

import argparse
import itertools
import json
import lzma
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table
from roost.engine.checkpoint import open_tensors
from roost.engine.checkpoint.source import ModelSource, open_model
from roost.engine.checkpoint.weights import Checkpoint, load_params
from roost.engine.model.griffin import abstract_model
from roost.engine.model.state import zero_state
from roost.engine.platform import CPU, CPU_OPTIONS
from roost.server.text.chat_template import Ending, Message, load_chat_format
from roost.server.text.tokenizer import Tokenizer
from roost.server.text.tokenizer_loading import load_tokenizer

EVALUATION: Final = Path(__file__).parents[1] / "tools" / "eval_demo.py"
ROWS, STEPS, BLOCK = 8, 512, 64


@dataclass(frozen=True)
class Precision:
    """Data type of activations, and of matrices if it differs."""

    name: str
    dtype: str
    quantize: str | None = None


PRECISIONS: Final = (
    Precision("float32", "float32"),
    Precision("bfloat16", "bfloat16"),
    Precision("int8, else float32", "float32", "int8"),
    Precision("int8, else bfloat16", "bfloat16", "int8"),
)


@dataclass(frozen=True)
class Distance:
    """Distance from float32, over a number of tokens."""

    tokens: int
    divergence: float
    same: float


@dataclass(frozen=True)
class Quality:
    """Results of one precision.

    Attributes:
      weight_bytes: Bytes of all parameters on a CPU.
      dialogues: Distance on unseen dialogues.
      stories: Distance on unseen stories.
      scores: Share of correct answers by part of the list.
    """

    precision: str
    weight_bytes: int
    dialogues: Distance
    stories: Distance
    scores: Mapping[str, str]


class Model:
    """Model in a precision, which computes next-token log-probabilities."""

    def __init__(self, source: ModelSource, precision: Precision) -> None:
        self._dtype = jnp.dtype(precision.dtype)
        matrices = None if precision.quantize is None else jnp.dtype(precision.quantize)
        graph, abstract = abstract_model(source.config, self._dtype, CPU, matrix_dtype=matrices)
        with open_tensors(source.weights, source.config) as tensors:
            self._params = load_params(Checkpoint(source.config, tensors), abstract)
        self._state = zero_state(source.config, ROWS, self._dtype)
        self._forward = jax.jit(partial(_forward, graph), compiler_options=CPU_OPTIONS)
        self.weight_bytes = sum(x.nbytes for x in jax.tree.leaves(self._params))

    def __call__(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """Returns log-probabilities `[ROWS, STEPS, V]` of at most `ROWS` texts."""
        tokens, positions = np.zeros((ROWS, STEPS), np.int32), np.full((ROWS, STEPS), -1, np.int32)
        for row, text in enumerate(texts):
            tokens[row, : len(text)], positions[row, : len(text)] = text, np.arange(len(text))
        return np.asarray(self._forward(self._params, tokens, positions, self._state))


def _forward(graph: Any, params: Any, tokens: jax.Array, positions: jax.Array, state: Any) -> jax.Array:
    model = nnx.merge(graph, params)
    hidden, _ = model(tokens, positions, state, BLOCK)
    return jax.nn.log_softmax(model.logits(hidden))


def distance(exact: Model, other: Model, texts: Sequence[Sequence[int]]) -> Distance:
    divergence, same, tokens = 0.0, 0, 0
    for batch in itertools.batched(texts, ROWS, strict=False):
        wanted, found = exact(batch), other(batch)
        for row, text in enumerate(batch):
            p, q = (x[row, : len(text)].astype(np.float64) for x in (wanted, found))
            divergence += float((np.exp(p) * (p - q)).sum())
            same += int((p.argmax(axis=-1) == q.argmax(axis=-1)).sum())
            tokens += len(text)
    return Distance(tokens, divergence / tokens, same / tokens)


def read_rows(path: Path, count: int) -> Iterator[Mapping[str, Any]]:
    with lzma.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, itertools.islice(file, count))


def dialogues(corpus: Path, count: int, source: ModelSource, tokenizer: Tokenizer) -> list[list[int]]:
    chat = load_chat_format(source.directory, tokenizer)
    ending = Ending(add_header=False)
    rows = read_rows(corpus / "chat-val.jsonl.xz", count)
    return [chat.encode([Message(m["role"], m["content"]) for m in row["messages"]], ending)[:STEPS] for row in rows]


def stories(corpus: Path, count: int, tokenizer: Tokenizer) -> list[list[int]]:
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    rows = read_rows(corpus / "tinystories-val.jsonl.xz", count)
    return [[*bos, *tokenizer.encode(row["text"], control_tokens=False)][:STEPS] for row in rows]


def scores(precision: Precision, questions: Path) -> dict[str, str]:
    """Returns the scores with a server of its own."""
    options = ["--dtype", precision.dtype, "--port", "0", "--slots", "8"]
    if precision.quantize is not None:
        options += ["--quantize", precision.quantize]
    command = [sys.executable, "-m", "roost.server", "serve", "demo", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            address = next(found[1] for line in server.stderr if (found := re.match(r"address +(\S+)/v1", line)))
            ask = [sys.executable, str(EVALUATION), str(questions), "--url", address]
            asked = subprocess.run(ask, capture_output=True, text=True, check=True)
        finally:
            server.terminate()
    return dict(re.findall(r"^(\w+): (\d+ of \d+)", asked.stdout, re.MULTILINE))


def as_table(measured: Sequence[Quality]) -> Table:
    table = Table(title="the demo model on a CPU")
    parts = list(measured[0].scores)
    for name in ("precision", "weights MB", "KL dialogues", "same", "KL stories", "same", *parts):
        table.add_column(name, justify="left" if name == "precision" else "right")
    for q in measured:
        distances = (f(d) for d in (q.dialogues, q.stories) for f in (_divergence, _same))
        table.add_row(q.precision, f"{q.weight_bytes / 1e6:.1f}", *distances, *(q.scores[part] for part in parts))
    return table


def _divergence(measured: Distance) -> str:
    return f"{measured.divergence:.6f}"


def _same(measured: Distance) -> str:
    return f"{measured.same:.2%}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares precisions on the demo model.")
    parser.add_argument("corpus", type=Path, help="folder of the demo corpus")
    parser.add_argument("--texts", type=int, default=200, help="of each kind (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each precision")
    options = parser.parse_args()

    source = open_model("demo")
    assert source.directory is not None
    tokenizer = load_tokenizer(source.directory, source.config.vocab_size)
    talks = dialogues(options.corpus, options.texts, source, tokenizer)
    tales = stories(options.corpus, options.texts, tokenizer)
    exact = Model(source, PRECISIONS[0])
    measured = []
    for precision in PRECISIONS:
        model = Model(source, precision)
        distances = [distance(exact, model, texts) for texts in (talks, tales)]
        answers = scores(precision, options.corpus / "demo-eval-public.jsonl")
        measured.append(Quality(precision.name, model.weight_bytes, *distances, answers))
        if options.json:
            print(json.dumps(asdict(measured[-1])), flush=True)
    if not options.json:
        Console(width=160).print(as_table(measured))


if __name__ == "__main__":
    main()
