"""The training tool on made-up data: what is learned, how it is packed, and that an interruption changes nothing."""

import importlib.util
import json
import lzma
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from roost.engine.checkpoint.source import open_tensors
from roost.engine.checkpoint.weights import Checkpoint
from roost.engine.model.config import read_config
from roost.server.text.chat_format import Message
from roost.server.text.chat_template import load_chat_format
from roost.server.text.tokenizer import load_tokenizer


def load_tool(name: str) -> ModuleType:
    """`tools/` is no package."""
    path = Path(__file__).parents[2] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


tool: Any = load_tool("train_demo")

STORIES = [
    {"text": "Tom had a red ball.\nHe was happy."},
    {"text": "Ann saw a cat. The cat saw Ann.\nThey were friends."},
]
DIALOGUES = [
    {
        "type": "multi",
        "messages": [
            {"role": "user", "content": "Hello!"},
            {"role": "model", "content": "Hello! How can I help you?", "skill": "greet"},
            {"role": "user", "content": "Tell me a story."},
            {"role": "model", "content": "Tom had a ball.", "skill": "story_any"},
        ],
    },
    {
        "type": "mem_far",
        "messages": [
            {"role": "user", "content": "What is 2 + 3?"},
            {"role": "model", "content": "2 + 3 = 5.", "skill": "add"},
        ],
    },
]
BOOKS = [{"title": "T", "author": "A", "translation": "B", "license": "CC-BY 4.0", "source": "S", "text": "One.\nTwo."}]
TOY = tool.Recipe(
    vocab_size=300, width=16, depth=3, heads=2, window=16, length=64, rows=4, warmup_steps=2, average_from=0.5
)


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    tool.train_tokenizer(tool.tokenizer_text(STORIES, DIALOGUES, 1), TOY.vocab_size, path)
    return path


@pytest.fixture(scope="module")
def encoder(tokenizer_path: Path) -> Any:
    return tool.Encoder(tokenizer_path)


@pytest.fixture(scope="module")
def trainer() -> Any:
    return tool.Trainer(TOY)


@pytest.fixture(scope="module")
def sources(encoder: Any) -> Mapping[str, Sequence[Any]]:
    return {
        "chat": [encoder.dialogue(d["messages"]) for d in DIALOGUES] * 4,
        "far": [encoder.dialogue(DIALOGUES[1]["messages"])] * 4,
        "recall": tool.short_recall(encoder, DIALOGUES) * 4,
        "stories": [encoder.story(s["text"]) for s in STORIES] * 4,
        "books": [piece for book in BOOKS for piece in encoder.book(book["text"])],
    }


def text(encoder: Any, ids: np.ndarray) -> str:
    """The pieces' text, marks included; it must be ASCII."""
    pieces = "".join(encoder._pieces.id_to_piece(int(i)) for i in ids).replace("▁", " ")
    return re.sub("<0x(..)>", lambda byte: chr(int(byte[1], 16)), pieces)


def test_the_tokenizer_has_gemma_s_ids_and_whole_role_names(encoder: Any) -> None:
    pieces = encoder._pieces
    assert pieces.vocab_size() == TOY.vocab_size
    assert [pieces.id_to_piece(i) for i in range(7)] == [
        "<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "\n",
    ]  # fmt: skip
    assert len(pieces.encode("user")) == len(pieces.encode("model")) == 1
    assert pieces.decode(pieces.encode(" 12  é🚀\n")) == " 12  é🚀\n"


def test_the_model_learns_answers_and_their_ends_and_nothing_else(encoder: Any) -> None:
    ids, kinds = encoder.dialogue(DIALOGUES[0]["messages"])
    assert text(encoder, ids) == (
        "<bos><start_of_turn>user\nHello!<end_of_turn>\n"
        "<start_of_turn>model\nHello! How can I help you?<end_of_turn>\n"
        "<start_of_turn>user\nTell me a story.<end_of_turn>\n"
        "<start_of_turn>model\nTom had a ball.<end_of_turn>\n"
    )
    assert text(encoder, ids[kinds > 0]) == "Hello! How can I help you?<end_of_turn>Tom had a ball.<end_of_turn>"
    ids, kinds = encoder.dialogue(DIALOGUES[0]["messages"], stories=False)
    assert text(encoder, ids[kinds > 0]) == "Hello! How can I help you?<end_of_turn>"


def test_all_of_a_story_is_learned(encoder: Any) -> None:
    ids, kinds = encoder.story("Tom had a ball.")
    assert text(encoder, ids) == "<bos>Tom had a ball.<eos>"
    assert (kinds == tool.Kind.STORY).all()


def test_stories_answers_and_recalled_facts_can_weigh_differently(encoder: Any) -> None:
    skills = ["story_any", "add", "ask_name"]
    turns = [{"role": "model", "content": "Tom", "skill": skill} for skill in skills]
    rows = tool.pack([encoder.dialogue(turns)], TOY.length)
    *_, weights = rows.batch((0.0, 1.0, 3.0, 6.0))
    assert list(dict.fromkeys(weights.flat)) == [0.0, 1.0, 3.0, 6.0]
    *_, weights = rows.batch()
    assert set(weights.flat) == {0.0, 1.0}


def test_a_book_is_cut_between_paragraphs(encoder: Any) -> None:
    paragraph = len(encoder._pieces.encode("Tom saw Ann.\n"))
    pieces = encoder.book("Tom saw Ann.\n" * 4 + "The end.", limit=2 * paragraph)
    assert [text(encoder, ids) for ids, _ in pieces] == [
        "<bos>Tom saw Ann.\nTom saw Ann.\n",
        "<bos>Tom saw Ann.\nTom saw Ann.\n",
        "<bos>The end.<eos>",
    ]


def test_training_and_serving_encode_alike(encoder: Any, tokenizer_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_path.parent, TOY.vocab_size)
    messages = DIALOGUES[0]["messages"][:3]
    served = load_chat_format(None, tokenizer).encode([Message(m["role"], m["content"]) for m in messages])
    assert [*encoder.dialogue(messages).ids, *encoder._headers["model"]] == served


def test_rows_are_filled_first_fit() -> None:
    assert tool.assign_rows([6, 5, 4, 5, 10], length=10) == [[0, 2], [1, 3], [4]]


def test_the_fullest_row_is_closed_when_too_many_are_open() -> None:
    assert tool.assign_rows([6, 7, 8, 2], length=10, max_open=2) == [[1], [0, 3], [2]]


def test_packed_rows_hold_whole_documents_one_after_the_other() -> None:
    first = tool.Document(np.array([2, 10, 11, 12]), np.array([0, 2, 0, 3]))
    second = tool.Document(np.array([2, 20, 21]), np.array([1, 1, 1]))
    rows = tool.pack([first, second], length=6)
    np.testing.assert_array_equal(rows.tokens, [[2, 10, 11, 2, 20, 0]])
    np.testing.assert_array_equal(rows.positions, [[0, 1, 2, 0, 1, -1]])
    np.testing.assert_array_equal(rows.targets, [[10, 11, 12, 20, 21, 0]])
    np.testing.assert_array_equal(rows.kinds, [[2, 0, 3, 1, 1, 0]])


def test_a_document_longer_than_a_row_loses_its_end() -> None:
    rows = tool.pack([tool.Document(np.arange(10), np.ones(10, np.int8))], length=4)
    np.testing.assert_array_equal(rows.tokens, [[0, 1, 2, 3]])
    np.testing.assert_array_equal(rows.targets, [[1, 2, 3, 4]])


def test_the_loss_of_a_document_does_not_depend_on_its_neighbours_or_padding(encoder: Any, trainer: Any) -> None:
    documents = [encoder.story(s["text"][:24]) for s in STORIES]
    params = trainer.start().params
    together = tool.pack(documents, TOY.length)
    alone = [tool.pack([d], TOY.length) for d in documents]
    assert len(together.tokens) == 1
    weights = [(rows.kinds > 0).sum() for rows in alone]
    expected = np.average([trainer.loss(params, rows) for rows in alone], weights=weights)
    assert trainer.loss(params, together) == pytest.approx(expected, rel=1e-5)


def test_each_phase_draws_on_its_own_sources(sources: Mapping[str, Sequence[Any]]) -> None:
    even = (0.0, 1.0, 1.0, 1.0)
    phases = (tool.Phase(0.0, {"stories": 1.0}, even), tool.Phase(0.6, {"chat": 1.0}, even))
    mixtures = {name: tool.Mixture({name: sources[name]}, replace(TOY, phases=phases)) for name in ("stories", "chat")}
    for name, other, progress in (("stories", "chat", 0.59), ("chat", "stories", 0.6)):
        assert mixtures[name].batch(0, progress).tokens.shape == (TOY.rows, TOY.length)
        with pytest.raises(KeyError, match=name):
            mixtures[other].batch(0, progress)


def test_recall_is_learned_from_short_dialogues(encoder: Any) -> None:
    size = len(encoder.dialogue(DIALOGUES[1]["messages"]).ids)
    assert len(tool.short_recall(encoder, DIALOGUES, limit=size)) == 1
    assert tool.short_recall(encoder, DIALOGUES, limit=size - 1) == []


def test_a_phase_has_its_own_window(encoder: Any, trainer: Any) -> None:
    windows = {phase.window for phase in TOY.phases}
    assert windows == {0, 32}
    assert TOY.window not in windows
    batch = tool.pack([encoder.story(STORIES[0]["text"])] * 8, TOY.length).take(slice(4)).batch()
    losses = {float(trainer.step(trainer.start(), batch, 0.0, 0.0, window=window)[1]) for window in windows}
    assert len(losses) == 2


def test_the_rate_warms_up_falls_stands_and_falls_again() -> None:
    recipe = tool.Recipe(warmup_steps=100, level_from=0.5, cool_from=0.8)
    level = (3e-3 + 3e-5) / 2
    assert recipe.rate(0, 0.0) == pytest.approx(3e-5)
    assert recipe.rate(99, 0.0) == pytest.approx(3e-3)
    assert recipe.rate(5000, 0.5) == recipe.rate(7900, 0.8) == pytest.approx(level)
    assert recipe.rate(9000, 0.9) == pytest.approx((level + 3e-5) / 2)
    assert recipe.rate(9999, 1.0) == pytest.approx(3e-5)


def test_weight_decay_leaves_the_recurrence_norms_biases_and_embedding_alone(trainer: Any) -> None:
    params = trainer.start().params
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    pulled = [
        (path[-1].key, leaf.ndim)
        for (path, leaf), on in zip(leaves, jax.tree.leaves(tool.decayed(params)), strict=True)
        if on
    ]
    assert set(pulled) == {("weight", 2), ("qkv", 2)}


def test_a_training_is_repeatable(trainer: Any, sources: Mapping[str, Sequence[Any]]) -> None:
    one, other = (tool.train(trainer, sources, steps=6) for _ in range(2))
    for first, second in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(first, second)


def test_the_loss_falls(trainer: Any, sources: Mapping[str, Sequence[Any]]) -> None:
    rows = tool.pack(sources["chat"], TOY.length)
    before = trainer.loss(trainer.start().params, rows)
    trained = tool.train(trainer, sources, steps=40)
    assert trainer.loss(trained.params, rows) < 0.8 * before


def test_the_whole_tool_leaves_a_checkpoint_that_the_server_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    parts: dict[str, Any] = {
        "tinystories-train": STORIES,
        "tinystories-val": STORIES,
        "chat-train": DIALOGUES,
        "chat-val": DIALOGUES,
    }
    for name, rows in (parts | {"ccby-stories": BOOKS}).items():
        with lzma.open(corpus / f"{name}.jsonl.xz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    tool.run(TOY, corpus, out, steps=2)

    config = read_config(out / "config.json")
    assert config == TOY.model
    with open_tensors([out / "model.safetensors"], config) as tensors:
        assert Checkpoint(config, tensors).dtype == "bfloat16"
    assert load_tokenizer(out, config.vocab_size).end_token_ids == (1, 5)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [1, 5]
    assert "2 of 2 steps" in capsys.readouterr().out
    assert "T, by A, translated by B (CC-BY 4.0)" in (out / "ATTRIBUTION.md").read_text()
