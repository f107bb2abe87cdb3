"""Trains the demo model: from the corpus to a checkpoint in the Hugging Face layout.

    python tools/train_demo.py CORPUS --out DIR

The method is the corpus's RECIPE.md, with the numbers in `Recipe`. On two free CPU cores a step of 4,096 tokens takes
0.8 s. The model card is `configs/demo/README.md`; `tools/eval_demo.py` writes its scores.

Without help, the model learns to answer from its attention window only and not to keep earlier turns: after 12 million
tokens it recalled a fact over 100 tokens nearly always, and over 130 hardly ever. With a window of 32 tokens and many
questions about earlier turns, the recurrent state learned it within 400 steps, even over 300 tokens.

The phases and rates are those of the bundled model. They were found during its training: it was stopped four times and
continued from its saved state with the next phase, so that its first half had a slightly lower rate than a new run has.
"""

import argparse
import itertools
import json
import lzma
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sentencepiece
from flax import nnx
from roost.engine.checkpoint.weights import checkpoint_tensors, random_params
from roost.engine.model.config import ModelConfig, Params, config_to_hf, cycle
from roost.engine.model.griffin import Griffin, abstract_model
from roost.engine.model.state import zero_state
from safetensors.numpy import save

PAD_ID, EOS_ID, BOS_ID, UNK_ID = range(4)
START_OF_TURN: Final = "<start_of_turn>"
END_OF_TURN: Final = "<end_of_turn>"
_PRINT_EVERY: Final = 300
"""Steps between lines of progress."""

type Row = Mapping[str, Any]
"""A line of the corpus: a story or a dialogue."""
type Message = Mapping[str, str]
"""A turn of a dialogue: `role` (user or model), `content` and, for the model's turns, `skill`."""
type Batch = tuple[Any, Any, Any, Any]
"""Tokens, positions, targets (see `Rows`) and their weights."""


class Kind(IntEnum):
    """Role of a token in the loss."""

    GIVEN = 0
    STORY = 1
    ANSWER = 2
    RECALL = 3
    """Token of an answer that repeats what the user said before."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of the training.

    Attributes:
      start: Start of the phase as a fraction of the training.
      shares: Shares of a batch's rows, by source.
      weights: Weight of each `Kind` in the loss.
      window: Attention window; 0 is the model's own. A short one leaves recall to the recurrent state.
    """

    start: float
    shares: Mapping[str, float]
    weights: tuple[float, float, float, float]
    window: int = 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """All numbers of the training; the defaults are those of the bundled model.

    Attributes:
      length: Tokens of a row.
      rows: Rows of a batch.
      phases: Phases in order. The first trains a language model, the next ones teach it to answer and to recall.
      level_from: Fraction of the training after which the learning rate is constant.
      cool_from: Fraction of the training after which the learning rate falls to its end.
      average_from: Fraction of the training after which the weights are averaged.
    """

    seed: int = 20260
    vocab_size: int = 3072
    width: int = 192
    depth: int = 6
    heads: int = 4
    window: int = 128
    length: int = 512
    rows: int = 8
    phases: tuple[Phase, ...] = (
        Phase(0.0, {"chat": 0.72, "stories": 0.25, "books": 0.03}, (0.0, 1.0, 1.0, 1.0)),
        Phase(0.545, {"chat": 1.0}, (0.0, 1.0, 3.0, 6.0)),
        Phase(0.67, {"chat": 0.5, "far": 0.5}, (0.0, 1.0, 3.0, 25.0)),
        Phase(0.79, {"chat": 0.25, "recall": 0.75}, (0.0, 1.0, 3.0, 25.0), window=32),
        Phase(0.876, {"chat": 1.0}, (0.0, 1.0, 3.0, 6.0)),
    )
    level_from: float = 0.545
    cool_from: float = 0.876
    peak_rate: float = 3e-3
    final_rate: float = 3e-5
    warmup_steps: int = 100
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    average_from: float = 0.5
    average_decay: float = 0.995

    @property
    def model(self) -> ModelConfig:
        """Shape of the model."""
        return ModelConfig(
            vocab_size=self.vocab_size,
            width=self.width,
            mlp_width=3 * self.width,
            num_heads=self.heads,
            lru_width=self.width,
            block_types=cycle(("recurrent", "recurrent", "attention"), self.depth),
            window=self.window,
            dtype="bfloat16",
        )

    def rate(self, step: int, progress: float) -> float:
        """Returns the learning rate: linear warm-up, a part of a cosine, constant, and linear down to the end."""
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, self.level_from)))
        rate = self.final_rate + (self.peak_rate - self.final_rate) * cosine
        cooled = min(max(0.0, (progress - self.cool_from) / (1.0 - self.cool_from)), 1.0)
        rate += (self.final_rate - rate) * cooled
        return rate * min(1.0, (step + 1) / self.warmup_steps)

    def phase(self, progress: float) -> Phase:
        """Returns the current phase of the training."""
        return [phase for phase in self.phases if phase.start <= progress][-1]


# --- text to tokens


def read_rows(path: Path) -> list[Row]:
    """Yields the lines of an xz-compressed JSON Lines file."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def tokenizer_text(stories: Sequence[Row], dialogues: Sequence[Row], seed: int) -> Iterator[str]:
    """Yields the tokenizer's training texts, with enough role names that each of them becomes one piece."""
    for story in stories:
        yield from story["text"].splitlines()
    for index in np.random.default_rng([seed, 0]).permutation(len(dialogues))[:20_000]:
        for message in dialogues[index]["messages"]:
            if not message.get("skill", "").startswith("story"):
                yield from message["content"].splitlines()
    yield from itertools.chain.from_iterable(itertools.repeat(("user", "model"), 20_000))


def train_tokenizer(text: Iterable[str], vocab_size: int, path: Path) -> None:
    """Trains a SentencePiece model with Gemma's ids and marks and writes it to `path`."""
    with path.open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            bos_id=BOS_ID,
            unk_id=UNK_ID,
            pad_piece="<pad>",
            eos_piece="<eos>",
            bos_piece="<bos>",
            unk_piece="<unk>",
            user_defined_symbols=[START_OF_TURN, END_OF_TURN, "\n"],
            byte_fallback=True,
            split_digits=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            character_coverage=0.9995,
            allow_whitespace_only_pieces=True,
            num_threads=1,
            max_sentence_length=8192,
            minloglevel=1,
        )


class Document(NamedTuple):
    """Token ids and their `Kind`."""

    ids: np.ndarray
    kinds: np.ndarray


class Encoder:
    """Converts stories and dialogues to documents.

    Parts of a dialogue are encoded separately, so that no piece crosses a mark.

    Args:
      path: Path of the SentencePiece model.
    """

    def __init__(self, path: Path) -> None:
        self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.end_of_turn: int = self._pieces.piece_to_id(END_OF_TURN)
        self._newline: int = self._pieces.piece_to_id("\n")
        start: int = self._pieces.piece_to_id(START_OF_TURN)
        self._headers = {role: [start, *self._pieces.encode(role), self._newline] for role in ("user", "model")}

    def dialogue(self, messages: Sequence[Message], *, stories: bool = True) -> Document:
        """Returns a dialogue; the model's answers up to `<end_of_turn>` are learned, stories only on request."""
        ids, kinds = [BOS_ID], [Kind.GIVEN]
        for message in messages:
            header, content = self._headers[message["role"]], self._pieces.encode(message["content"])
            kind = Kind.GIVEN if message["role"] == "user" else _kind(message.get("skill", ""))
            if kind is Kind.STORY and not stories:
                kind = Kind.GIVEN
            ids += [*header, *content, self.end_of_turn, self._newline]
            kinds += [Kind.GIVEN] * len(header) + [kind] * (len(content) + 1) + [Kind.GIVEN]
        return Document(np.array(ids, np.int32), np.array(kinds, np.int8))

    def story(self, text: str) -> Document:
        """Returns a text, all of which is learned."""
        return _whole([BOS_ID, *self._pieces.encode(text), EOS_ID])

    def book(self, text: str, limit: int = 480) -> list[Document]:
        """Returns a longer text in pieces of whole paragraphs; only the last one ends with `<eos>`."""
        pieces: list[list[int]] = [[]]
        for paragraph in text.splitlines(keepends=True):
            ids = self._pieces.encode(paragraph)
            if pieces[-1] and len(pieces[-1]) + len(ids) > limit:
                pieces.append([])
            pieces[-1] += ids
        pieces[-1].append(EOS_ID)
        return [_whole([BOS_ID, *ids]) for ids in pieces]


def _kind(skill: str) -> Kind:
    if skill.startswith("story"):
        return Kind.STORY
    return Kind.RECALL if skill.startswith("ask_") else Kind.ANSWER


def _whole(ids: Sequence[int]) -> Document:
    return Document(np.array(ids, np.int32), np.full(len(ids), Kind.STORY, np.int8))


# --- tokens to batches


class Rows(NamedTuple):
    """Packed documents, `[rows, length]` each.

    Attributes:
      tokens: Input tokens.
      positions: Position of each token in its document; -1 is padding.
      targets: Following token of each.
      kinds: `Kind` of each target.
    """

    tokens: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    kinds: np.ndarray

    def take(self, indices: int | slice) -> "Rows":
        """Returns one or some of the rows."""
        return Rows(*(x[indices] for x in self))

    def batch(self, weights: Sequence[float] = (0.0, 1.0, 1.0, 1.0)) -> Batch:
        """Returns the inputs of the loss with a weight for each `Kind`."""
        return self.tokens, self.positions, self.targets, np.array(weights, np.float32)[self.kinds]


def assign_rows(sizes: Sequence[int], length: int, max_open: int = 64) -> list[list[int]]:
    """Packs documents of given sizes into rows, first fit.

    Args:
      sizes: Sizes of the documents, at most `length` each.
      length: Length of a row.
      max_open: Rows that may still get a document; to open one more, the fullest is closed.

    Returns:
      The documents' indices by row.
    """
    closed: list[list[int]] = []
    rooms: list[int] = []
    members: list[list[int]] = []
    for index, size in enumerate(sizes):
        place = next((i for i, room in enumerate(rooms) if room >= size), None)
        if place is None:
            if len(rooms) == max_open:
                fullest = rooms.index(min(rooms))
                rooms.pop(fullest)
                closed.append(members.pop(fullest))
            rooms.append(length)
            members.append([])
            place = len(rooms) - 1
        rooms[place] -= size
        members[place].append(index)
    return closed + members


def pack(documents: Sequence[Document], length: int) -> Rows:
    """Packs documents into rows of `length` inputs; longer ones lose their end."""
    sizes = [min(len(document.ids) - 1, length) for document in documents]
    layout = assign_rows(sizes, length)
    shape = (len(layout), length)
    rows = Rows(
        tokens=np.full(shape, PAD_ID, np.int32),
        positions=np.full(shape, -1, np.int32),
        targets=np.full(shape, PAD_ID, np.int32),
        kinds=np.full(shape, Kind.GIVEN, np.int8),
    )
    for row, members in enumerate(layout):
        start = 0
        for index in members:
            (ids, kinds), size = documents[index], sizes[index]
            place = (row, slice(start, start + size))
            rows.tokens[place] = ids[:size]
            rows.positions[place] = np.arange(size)
            rows.targets[place] = ids[1 : size + 1]
            rows.kinds[place] = kinds[1 : size + 1]
            start += size
    return rows


class Mixture:
    """An endless, repeatable stream of batches. Every pass over a source packs its documents in another order.

    Args:
      sources: Documents by the names in the recipe's shares.
      recipe: Shares and the shape of a batch.
    """

    def __init__(self, sources: Mapping[str, Sequence[Document]], recipe: Recipe) -> None:
        self._recipe = recipe
        self._rows = {name: self._passes(name, documents) for name, documents in sources.items()}

    def batch(self, step: int, progress: float) -> Rows:
        """Returns the next batch; its sources depend only on the step and the progress."""
        shares = self._recipe.phase(progress).shares
        rng = np.random.default_rng([self._recipe.seed, 1, step])
        drawn = rng.choice(len(shares), self._recipe.rows, p=list(shares.values()))
        return Rows(*map(np.stack, zip(*(next(self._rows[list(shares)[i]]) for i in drawn), strict=True)))

    def _passes(self, name: str, documents: Sequence[Document]) -> Iterator[Rows]:
        for number in itertools.count():
            rng = np.random.default_rng([self._recipe.seed, 2, *name.encode(), number])
            rows = pack([documents[i] for i in rng.permutation(len(documents))], self._recipe.length)
            yield from map(rows.take, rng.permutation(len(rows.tokens)))


# --- the model


def cross_entropy(model: Griffin, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Returns the weighted sum of the tokens' losses in nats, and the sum of the weights."""
    tokens, positions, targets, weights = batch
    block = min(128, model.config.window, tokens.shape[1])
    x, _ = model(tokens, positions, zero_state(model.config, len(tokens), jnp.dtype(jnp.float32)), block)
    logits = model.logits(x)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - chosen
    return jnp.sum(losses * weights), jnp.sum(weights)


def decayed(params: Params) -> Any:
    """Returns the parameters with weight decay: the blocks' projections, and nothing of the RG-LRU."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in ("weight", "qkv"), params)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Trained:
    """State that changes with each step, on the device.

    Attributes:
      params: Parameters.
      average: Running average of the parameters in the later part of the training; the result.
      optimizer: optax's state.
    """

    params: Params
    average: Params
    optimizer: Any


class Trainer:
    """A recipe's compiled functions."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._graphs = {}
        for window in {0, *(phase.window for phase in recipe.phases)}:
            config = replace(recipe.model, window=window or recipe.window)
            self._graphs[window], self._abstract = abstract_model(config, jnp.dtype(jnp.float32))
        self._optimizer = optax.chain(
            optax.clip_by_global_norm(recipe.clip_norm),
            optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-8),
            optax.add_decayed_weights(recipe.weight_decay, decayed),
        )
        self.step = jax.jit(self._step, donate_argnums=0, static_argnames="window")
        self._sums = jax.jit(lambda params, batch: cross_entropy(nnx.merge(self._graphs[0], params), batch))

    def start(self) -> Trained:
        """Returns the state before the first step."""
        params = random_params(self._abstract, self.recipe.seed)
        return Trained(params, jax.tree.map(jnp.copy, params), self._optimizer.init(params))

    def loss(self, params: Params, rows: Rows) -> float:
        """Returns the mean loss over rows, in batches of the training's shape, the last one padded with zeros."""
        size, total, weight = self.recipe.rows, 0.0, 0.0
        for start in range(0, len(rows.tokens), size):
            part = rows.take(slice(start, start + size))
            missing = ((0, size - len(part.tokens)), (0, 0))
            sums = self._sums(params, tuple(np.pad(x, missing) for x in part.batch()))
            total, weight = total + float(sums[0]), weight + float(sums[1])
        return total / max(weight, 1.0)

    def _step(
        self, trained: Trained, batch: Batch, rate: jax.Array, average_decay: jax.Array, window: int
    ) -> tuple[Trained, jax.Array]:
        """Runs one step of AdamW and returns the batch's mean loss before it. An `average_decay` of 0 copies."""

        def mean(params: Params) -> jax.Array:
            total, weight = cross_entropy(nnx.merge(self._graphs[window], params), batch)
            return total / jnp.maximum(weight, 1.0)

        loss, gradients = jax.value_and_grad(mean)(trained.params)
        updates, optimizer = self._optimizer.update(gradients, trained.optimizer, trained.params)
        params = jax.tree.map(lambda p, u: p - rate * u, trained.params, updates)
        average = jax.tree.map(lambda a, p: average_decay * a + (1.0 - average_decay) * p, trained.average, params)
        return Trained(params, average, optimizer), loss


# --- the training


def train(trainer: Trainer, sources: Mapping[str, Sequence[Document]], steps: int) -> Trained:
    """Trains for a number of steps, over which the recipe's schedule is stretched, and prints its progress.

    Args:
      trainer: The compiled recipe.
      sources: Documents by the names in the recipe's shares.
      steps: Number of steps.

    Raises:
      FloatingPointError: The loss is not finite.
    """
    recipe, trained, tokens = trainer.recipe, trainer.start(), 0
    mixture = Mixture(sources, recipe)
    for step in range(steps):
        progress = step / steps
        rows = mixture.batch(step, progress)
        average_decay = recipe.average_decay if progress >= recipe.average_from else 0.0
        phase = recipe.phase(progress)
        rate = recipe.rate(step, progress)
        trained, mean = trainer.step(trained, rows.batch(phase.weights), rate, average_decay, window=phase.window)
        loss = float(mean)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} after {step + 1} steps")
        tokens += int((rows.positions >= 0).sum())
        if (step + 1) % _PRINT_EVERY == 0 or step + 1 == steps:
            print(f"{step + 1} of {steps} steps, {tokens / 1e6:.2f} M tokens, loss {loss:.3f}", flush=True)
    return trained


# --- the checkpoint


def export(out: Path, recipe: Recipe, params: Params, end_of_turn: int) -> None:
    """Writes weights in bfloat16, config and generation defaults in the Hugging Face layout."""
    tensors = checkpoint_tensors(rounded(params), recipe.model)
    (out / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))  # `save_file` hides it from other users
    fields = config_to_hf(recipe.model) | {"dtype": recipe.model.dtype, "tie_word_embeddings": True}
    (out / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    generation = {
        "bos_token_id": BOS_ID,
        "do_sample": True,
        "eos_token_id": [EOS_ID, end_of_turn],
        "pad_token_id": PAD_ID,
        "temperature": 0.7,
        "top_p": 0.9,
    }
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def rounded(params: Params) -> Params:
    """Returns the parameters as they are stored."""
    return jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)


def write_attribution(path: Path, books: Sequence[Row]) -> None:
    """Names every book, as its licence requires."""
    lines = ["# Books in the demo model's training data", ""]
    ordered = sorted(books, key=lambda book: (book["source"], book["title"]))
    for source, group in itertools.groupby(ordered, lambda book: book["source"]):
        lines += [f"## {source}", ""]
        for book in group:
            translated = f", translated by {book['translation']}" if book["translation"] else ""
            lines.append(f"- {book['title']}, by {book['author']}{translated} ({book['license']})")
        lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")


# --- command line


def short_recall(encoder: Encoder, dialogues: Sequence[Row], limit: int = 256) -> list[Document]:
    """Returns the dialogues that ask for something said before, up to a length: many questions per token."""
    chosen = (d for d in dialogues if d["type"] in ("mem_near", "mem_far"))
    return [document for d in chosen if len((document := encoder.dialogue(d["messages"])).ids) <= limit]


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description="Trains the demo model: from the corpus to a checkpoint.")
    parser.add_argument("corpus", type=Path, help="directory of the corpus, with RECIPE.md")
    parser.add_argument("--out", type=Path, required=True, help="directory for the checkpoint")
    parser.add_argument("--steps", type=int, default=4268, help="number of steps (default: %(default)s)")
    options = parser.parse_args()
    run(Recipe(), options.corpus, options.out, options.steps)


def run(recipe: Recipe, corpus: Path, out: Path, steps: int) -> None:
    """Runs everything from the corpus to a checkpoint, and prints the figures of its card."""
    stories, dialogues, books, val_stories, val_dialogues = (
        read_rows(corpus / f"{name}.jsonl.xz")
        for name in ("tinystories-train", "chat-train", "ccby-stories", "tinystories-val", "chat-val")
    )
    out.mkdir(parents=True, exist_ok=True)
    text = tokenizer_text(stories, dialogues, recipe.seed)
    train_tokenizer(text, recipe.vocab_size, out / "tokenizer.model")
    encoder = Encoder(out / "tokenizer.model")
    sources = {
        "chat": [encoder.dialogue(d["messages"]) for d in dialogues],
        "far": [encoder.dialogue(d["messages"]) for d in dialogues if d["type"] == "mem_far"],
        "recall": short_recall(encoder, dialogues),
        "stories": [encoder.story(s["text"]) for s in stories],
        "books": [piece for book in books for piece in encoder.book(book["text"])],
    }
    validation = {
        "tinystories-val": pack([encoder.story(s["text"]) for s in val_stories], recipe.length),
        "chat-val, without stories": pack(
            [encoder.dialogue(d["messages"], stories=False) for d in val_dialogues], recipe.length
        ),
    }
    trainer = Trainer(recipe)
    trained = train(trainer, sources, steps)
    export(out, recipe, trained.average, encoder.end_of_turn)
    stored = jax.tree.map(lambda p: p.astype(jnp.float32), rounded(trained.average))
    for name, rows in validation.items():
        wide, narrow = trainer.loss(trained.average, rows), trainer.loss(stored, rows)
        print(f"{name}: {wide:.4f} in float32, {narrow:.4f} in bfloat16")
    write_attribution(out / "ATTRIBUTION.md", books)


if __name__ == "__main__":
    main()
