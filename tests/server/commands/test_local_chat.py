"""Prompt tokens that a conversation with a model in this process costs."""

import json
from pathlib import Path

import pytest
from cache_settings import restored
from roost.engine import PREFILL_BLOCK
from roost.server.commands.chat import ChatTurn, Reply
from roost.server.commands.local_chat import LocalChat
from roost.server.commands.options import ChatSessionOptions
from roost.server.llm import local_model
from roost.server.terminal.exits import CommandError
from shared_programs import TINY, compiled_once


async def test_a_turn_prefills_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefilled are the last prompt's rest after its last block boundary, the response, the message and turn tokens.

    The model has the programs of the servers of `tests/e2e`.
    """
    monkeypatch.setattr(local_model, "NUM_SLOTS", 4)
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    model, settings = f"random:{tmp_path}/config.json", {"prefill_chunk": 128}
    backend = LocalChat(ChatSessionOptions(model=model, max_tokens=4, seed=1, settings=settings))
    engine, tokenizer = backend._service.engine, backend._service.model.tokenizer
    with restored(), compiled_once("tiny"):
        await backend.start()
    messages: list[ChatTurn] = []
    lengths, read = [], []
    try:
        for turn in range(6):
            pieces: list[str] = []
            before = engine.stats
            messages.append(ChatTurn(role="user", content=f"{turn} is a number of many " * 4))
            reply = Reply(pieces.append)
            await backend.respond(messages, reply)
            messages.append(ChatTurn(role="assistant", content="".join(pieces)))
            after = engine.stats
            read.append(after.prompt_tokens - before.prompt_tokens)
            lengths.append(read[-1] + after.cache.hit_tokens - before.cache.hit_tokens)
        file, states = await backend.save(reply), []
        for _ in range(2):
            state = await backend.load(file)
            before, again = engine.stats, Reply(lambda _: None)
            await backend.respond([ChatTurn(role="user", content="more")], again, state["id"])
            states.append((state["tokens"], engine.stats.prompt_tokens - before.prompt_tokens))
        with pytest.raises(CommandError, match="the file is no whole state file"):
            await backend.load(file[:-9])
    finally:
        await backend.close()
    assert {num_tokens for num_tokens, _ in states} == {lengths[5] + 4}
    new = lengths[0] - len(tokenizer.encode("0 is a number of many " * 4)) + 20
    assert all(num_read < PREFILL_BLOCK + 4 + new for _, num_read in states), "the state's rest, and what is new"
    for turn in range(1, 6):
        assert read[turn] == lengths[turn] - lengths[turn - 1] // PREFILL_BLOCK * PREFILL_BLOCK
    assert lengths[5] > 4 * lengths[0] > 4 * PREFILL_BLOCK


def test_a_model_without_turn_tokens_cannot_chat() -> None:
    """The error comes before anything is loaded."""
    plain = Path(__file__).parents[2] / "golden" / "tiny-a" / "hf"
    with pytest.raises(CommandError, match="cannot chat: "):
        LocalChat(ChatSessionOptions(model=str(plain)))
