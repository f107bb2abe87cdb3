"""Measures how a precision changes the demo model: next-token distributions compared with float32, and scores.

For windows in int8, the error of attention is measured too, also on keys with outliers.

    python benchmarks/quality.py CORPUS [--texts 200] [--only "int8, else bfloat16"] [--json]

CORPUS is the folder of the demo corpus (`chat-val.jsonl.xz`, `tinystories-val.jsonl.xz`, `demo-eval-public.jsonl`). KL
is the mean over all tokens of the divergence of a precision's distribution from float32's, in nats; `same` is the share
of tokens with the same argmax, and `greedy` that share where float32 generates 1,000 tokens. Scores are those of
tools/eval_demo.py with a server.
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
from roost.engine import EngineConfig, Request, SamplingParams, load_engine
from roost.engine.checkpoint.source import ModelSource, open_model, open_tensors
from roost.engine.checkpoint.weights import Checkpoint, load_params
from roost.engine.devices.platform import CPU, CPU_OPTIONS
from roost.engine.model.griffin import abstract_model
from roost.engine.model.state import zero_state
from roost.kernels.references import window_attention_reference
from roost.kernels.window_attention import decode_attention, quantize
from roost.server.text.chat_format import Ending, Message
from roost.server.text.chat_template import load_chat_format
from roost.server.text.tokenizer import Tokenizer, load_tokenizer

EVALUATION: Final = Path(__file__).parents[1] / "tools" / "eval_demo.py"
ROWS, STEPS, BLOCK = 8, 512, 64


@dataclass(frozen=True)
class Precision:
    """Data type of activations, and of matrices and of the window if they differ."""

    name: str
    dtype: str
    quantize: str | None = None
    kv_dtype: str | None = None


PRECISIONS: Final = (
    Precision("float32", "float32"),
    Precision("bfloat16", "bfloat16"),
    Precision("int8, else float32", "float32", "int8"),
    Precision("int8, else bfloat16", "bfloat16", "int8"),
    Precision("int4, else float32", "float32", "int4"),
    Precision("int4, else bfloat16", "bfloat16", "int4"),
    Precision("float32, window in int8", "float32", kv_dtype="int8"),
    Precision("bfloat16, window in int8", "bfloat16", kv_dtype="int8"),
    Precision("int8, else bfloat16, window in int8", "bfloat16", "int8", "int8"),
)

GREEDY_TOKENS: Final = 1000
"""Tokens that float32 generates for each of `GREEDY_PROMPTS` dialogues' beginnings."""

GREEDY_PROMPTS, PROMPT_TOKENS = 4, 24
WINDOW, HEADS, HEAD_SIZE, OUTLIER = 2048, 10, 256, 20
"""Sizes of 2B's attention, and the factor of the outliers: all keys' first RoPE pair, 20 times the median."""


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
      greedy: Distance on what float32 generates.
      attention, outliers: Relative errors of attention, on normal keys and on keys with outliers.
      scores: Share of correct answers by part of the list.
    """

    precision: str
    weight_bytes: int
    dialogues: Distance
    stories: Distance
    greedy: Distance
    attention: float
    outliers: float
    scores: Mapping[str, str]


class Model:
    """Model in a precision, which computes next-token log-probabilities."""

    def __init__(self, source: ModelSource, precision: Precision) -> None:
        self._dtype = jnp.dtype(precision.dtype)
        matrices = None if precision.quantize is None else jnp.dtype(precision.quantize)
        source = source.with_kv_dtype(precision.kv_dtype)
        graph, abstract = abstract_model(source.config, self._dtype, CPU, matrix_dtype=matrices)
        with open_tensors(source.weights, source.config) as tensors:
            self._params = load_params(Checkpoint(source.config, tensors), abstract)
        self._zero = partial(zero_state, source.config, ROWS, self._dtype)
        self._forward = jax.jit(partial(_forward, graph), compiler_options=CPU_OPTIONS)
        self.weight_bytes = sum(x.nbytes for x in jax.tree.leaves(self._params))

    def __call__(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """Returns log-probabilities `[ROWS, T, V]` of at most `ROWS` texts; T is `STEPS` or a multiple of it."""
        steps = STEPS * -(-max(map(len, texts)) // STEPS)
        tokens, positions = np.zeros((ROWS, steps), np.int32), np.full((ROWS, steps), -1, np.int32)
        for row, text in enumerate(texts):
            tokens[row, : len(text)], positions[row, : len(text)] = text, np.arange(len(text))
        return np.asarray(self._forward(self._params, tokens, positions, self._zero()))


def _forward(graph: Any, params: Any, tokens: jax.Array, positions: jax.Array, state: Any) -> jax.Array:
    model = nnx.merge(graph, params)
    hidden, _ = model(tokens, positions, state, BLOCK)
    return jax.nn.log_softmax(model.logits(hidden))


def distance(exact: Model, other: Model, texts: Sequence[Sequence[int]]) -> Distance:
    divergence, same, tokens = 0.0, 0, 0
    for batch in itertools.batched(texts, ROWS):
        wanted, found = exact(batch), other(batch)
        for row, text in enumerate(batch):
            p, q = (x[row, : len(text)].astype(np.float64) for x in (wanted, found))
            divergence += float((np.exp(p) * (p - q)).sum())
            same += int((p.argmax(axis=-1) == q.argmax(axis=-1)).sum())
            tokens += len(text)
    return Distance(tokens, divergence / tokens, same / tokens)


def greedy_texts(source: ModelSource, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Returns prompts with what float32 generates after them, greedily and past the ends of responses."""
    core = load_engine(source, EngineConfig(slots=len(prompts), dtype="float32"))
    texts = {str(i): list(prompt) for i, prompt in enumerate(prompts)}
    for name, prompt in texts.items():
        core.add(Request(name, tuple(prompt), SamplingParams(max_tokens=GREEDY_TOKENS, temperature=0.0)))
    while not core.is_idle:
        for name, output in core.step():
            texts[name] += output.token_ids
    core.close()
    return list(texts.values())


def attention_error(precision: Precision, outlier: float) -> float:
    """Returns the relative error of a decode step's attention over full windows, in the Frobenius norm.

    Args:
      precision: Dtypes of queries and windows.
      outlier: Factor of the keys' first RoPE pair.
    """
    rng, dtype = np.random.default_rng(0), jnp.dtype(precision.dtype)
    q = rng.normal(size=(ROWS, 1, HEADS, HEAD_SIZE)).astype(dtype)
    keys, values = rng.normal(size=(2, ROWS, WINDOW + 1, HEAD_SIZE))
    keys[..., [0, HEAD_SIZE // 4]] *= outlier
    where = np.full((ROWS, 1), WINDOW, np.int32)
    wanted, *_ = window_attention_reference(
        q.astype(np.float64), keys[:, -1:], values[:, -1:], keys[:, :-1], values[:, :-1], where
    )

    def stored(x: np.ndarray) -> Any:
        found = jnp.asarray(x, dtype)
        return quantize(found) if precision.kv_dtype == "int8" else found

    k, v, ring_k, ring_v = map(stored, (keys[:, -1], values[:, -1], keys[:, :-1], values[:, :-1]))
    found, _ = jax.jit(decode_attention)(q[:, 0], k, v, (((ring_k, ring_v),),), where[:, 0])
    return float(np.linalg.norm(found - wanted[:, 0]) / np.linalg.norm(wanted))


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
    if precision.kv_dtype is not None:
        options += ["--kv-dtype", precision.kv_dtype]
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
    distances = ("KL dialogues", "same", "KL stories", "same", "greedy", "attention", "outliers")
    for name in ("precision", "weights MB", *distances, *parts):
        table.add_column(name, justify="left" if name == "precision" else "right")
    for q in measured:
        measures = (f(d) for d in (q.dialogues, q.stories) for f in (_divergence, _same))
        errors = (_same(q.greedy), f"{q.attention:.5f}", f"{q.outliers:.5f}")
        weights = f"{q.weight_bytes / 1e6:.1f}"
        table.add_row(q.precision, weights, *measures, *errors, *(q.scores[part] for part in parts))
    return table


def _divergence(measured: Distance) -> str:
    return f"{measured.divergence:.6f}"


def _same(measured: Distance) -> str:
    return f"{measured.same:.2%}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares precisions on the demo model.")
    parser.add_argument("corpus", type=Path, help="folder of the demo corpus")
    parser.add_argument("--texts", type=int, default=200, help="of each kind (default: %(default)s)")
    names = [precision.name for precision in PRECISIONS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PRECISION", help="leave out others")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each precision")
    options = parser.parse_args()

    source = open_model("demo")
    assert source.directory is not None
    tokenizer = load_tokenizer(source.directory, source.config.vocab_size)
    talks = dialogues(options.corpus, options.texts, source, tokenizer)
    tales = stories(options.corpus, options.texts, tokenizer)
    exact = Model(source, PRECISIONS[0])
    generated = greedy_texts(source, [talk[:PROMPT_TOKENS] for talk in talks[:GREEDY_PROMPTS]])
    measured = []
    for precision in PRECISIONS:
        if precision.name not in options.only:
            continue
        model = Model(source, precision)
        distances = [distance(exact, model, texts) for texts in (talks, tales, generated)]
        errors = [attention_error(precision, outlier) for outlier in (1, OUTLIER)]
        answers = scores(precision, options.corpus / "demo-eval-public.jsonl")
        row: Any = (precision.name, model.weight_bytes, *distances, *errors, answers)
        measured.append(Quality(*row))
        if options.json:
            print(json.dumps(asdict(measured[-1])), flush=True)
    if not options.json:
        Console(width=160).print(as_table(measured))


if __name__ == "__main__":
    main()
