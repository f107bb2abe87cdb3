"""Texts, ids and messages as prompts; and what takes long."""

import asyncio
import threading
from typing import Any, Literal

import pytest
from roost.server.errors.request_errors import ApiError
from roost.server.generation.admission import Admissions, admission
from roost.server.generation.prompts import Cut, Prompt, PromptEncoder
from roost.server.text.chat_format import Conversation, ConversationMessage
from roost.server.text.served_model import ServedModel
from roost.server.text.tokenizer import Tokenizer


@pytest.fixture
def encoder(model: ServedModel) -> PromptEncoder:
    return PromptEncoder(model)


@pytest.mark.parametrize("text", ["", "abc", "a<end_of_turn>b", "<bos>a", "žluťoučký 😀", " a  b\n\n"])
async def test_the_text_of_a_prompt_is_what_was_sent(encoder: PromptEncoder, tokenizer: Tokenizer, text: str) -> None:
    (prompt,) = await encoder.completions([text], add_bos=True)
    assert prompt.text(tokenizer) == text
    assert len(list(prompt.pieces(tokenizer))) == len(prompt.token_ids)


async def test_the_text_of_ids_leaves_control_tokens_out(encoder: PromptEncoder, tokenizer: Tokenizer) -> None:
    (prompt,) = await encoder.completions([[2, 4, 107, 5]], add_bos=True)
    assert prompt == Prompt((2, 4, 107, 5))
    assert prompt.text(tokenizer) == "ab"


@pytest.mark.parametrize(
    ("ids", "limit", "side", "kept"),
    [
        ((2, 4, 5, 6), 3, "left", (2, 5, 6)),
        ((2, 4, 5, 6), 3, "right", (2, 4, 5)),
        ((2, 4, 5, 6), 1, "left", (2,)),
        ((2, 4, 5, 6), 1, "right", (2,)),
        ((4, 5, 6), 2, "left", (5, 6)),
        ((4, 5, 6), 2, "right", (4, 5)),
        ((4, 5, 6), 3, "left", (4, 5, 6)),
        ((4, 5, 6), -1, "left", (4, 5, 6)),
        ((4, 5, 6), None, "left", (4, 5, 6)),
    ],
)
def test_a_long_prompt_is_cut_but_for_its_bos(
    encoder: PromptEncoder,
    ids: tuple[int, ...],
    limit: int | None,
    side: Literal["left", "right"],
    kept: tuple[int, ...],
) -> None:
    assert list(encoder.cut(Prompt(ids), Cut(limit, side)).token_ids) == list(kept)


async def test_control_tokens_in_a_message_are_plain_text(encoder: PromptEncoder) -> None:
    prompt = await encoder.chat(Conversation([ConversationMessage("user", "<end_of_turn>")]))
    assert list(prompt.token_ids).count(107) == 1  # the turn's own


@pytest.mark.parametrize(
    "message", [{"role": "narrator", "content": "hi"}, {"role": "tool", "content": "hi", "call_id": "c1"}]
)
async def test_messages_that_make_no_conversation(encoder: PromptEncoder, message: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        await encoder.chat(Conversation([ConversationMessage(**message)]))
    assert (caught.value.status_code, caught.value.body["error"]["param"]) == (400, "messages")


@pytest.mark.parametrize(
    "message",
    [
        {"role": "n" * 10_000, "content": "hi"},
        {"role": "n" * 10_000},
        {"role": "tool", "content": "hi", "call_id": "c" * 10_000},
    ],
)
async def test_an_error_does_not_repeat_a_long_name(encoder: PromptEncoder, message: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        await encoder.chat(Conversation([ConversationMessage(**message)]))
    assert len(caught.value.body["error"]["message"]) < 250


async def test_an_assistants_message_may_have_no_content(encoder: PromptEncoder) -> None:
    user = ConversationMessage("user", "hi")
    await encoder.chat(Conversation([user, ConversationMessage("assistant"), user]))


@pytest.mark.parametrize(("length", "on_loop"), [(10, True), (100_000, False)])
async def test_what_takes_long_is_done_off_the_loop(
    encoder: PromptEncoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, length: int, on_loop: bool
) -> None:
    threads: list[threading.Thread] = []
    encode = tokenizer.encode

    def spy(text: str) -> list[int]:
        threads.append(threading.current_thread())
        return encode(text)

    monkeypatch.setattr(tokenizer, "encode", spy)
    token = admission.set(Admissions().unbounded())
    await encoder.completions(["a" * (length // 2)] * 2, add_bos=True)
    admission.reset(token)
    assert all((thread is threading.main_thread()) is on_loop for thread in threads)


async def test_errors_come_back_from_the_threads(encoder: PromptEncoder) -> None:
    token = admission.set(Admissions().unbounded())
    with pytest.raises(ApiError):
        await asyncio.wait_for(encoder.completions([[600] * 10_000], add_bos=True), 60)
    admission.reset(token)
