"""Counter-proof: without its recurrent state the demo model forgets what its windows cannot reach."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest
from cache_settings import restored
from demo_talk import CHUNK, SLOTS, far
from roost.engine import (
    EngineConfig,
    EngineCore,
    ModelRunner,
    ModelSource,
    Request,
    SamplingParams,
    load_runner,
    open_model,
)
from roost.engine.model.layer_kinds import RecurrentState
from roost.engine.model.state import ModelState
from roost.engine.scheduling.scheduler import Scheduler
from roost.server.text.chat_format import Message
from roost.server.text.chat_template import load_chat_format
from roost.server.text.tokenizer import Tokenizer, load_tokenizer
from shared_programs import compiled_once, folder

REACH = 2 * 127 + 4 * 3
"""Tokens that two attention layers of window 128 and four convolutions can relay a fact."""


@pytest.fixture(scope="module")
def source() -> ModelSource:
    return open_model("demo")


@pytest.fixture(scope="module")
def tokenizer(source: ModelSource) -> Tokenizer:
    assert source.directory is not None
    return load_tokenizer(source.directory, source.config.vocab_size)


@pytest.fixture(scope="module")
def runner(source: ModelSource) -> Iterator[ModelRunner]:
    """Runs the demo model with the programs of the server in `test_demo`."""
    config = EngineConfig(SLOTS, prefill_chunk=CHUNK, compile_cache=folder())
    with compiled_once("demo"), restored():
        runner = load_runner(source, config)
    yield runner
    runner.close()


def forget(runner: ModelRunner) -> None:
    """Zeroes h and the convolutions' inputs of every slot; the attention windows keep their content."""
    arrays = runner.executor.arrays

    def zero_recurrent(state: ModelState) -> ModelState:
        return tuple(jax.tree.map(jnp.zeros_like, s) if isinstance(s, RecurrentState) else s for s in state)

    pool = arrays.get("pool")
    arrays.put("pool", pool._replace(states=pool.states.map(zero_recurrent)))


def answer(runner: ModelRunner, tokenizer: Tokenizer, prompt: list[int], forget_after: int | None) -> str:
    """Returns the greedy output when the state is zeroed after this many prompt tokens, which include the name."""
    core = EngineCore(Scheduler(SLOTS, 4, runner.limits), runner)
    params = SamplingParams(max_tokens=20, temperature=0.0, end_token_ids=tokenizer.end_token_ids)
    core.add(Request("a", tuple(prompt), params))
    token_ids: list[int] = []
    while not core.is_idle:
        for _, output in core.step():
            token_ids += output.token_ids
        if core.stats.prompt_tokens == forget_after:
            forget(runner)
            forget_after = None
    return tokenizer.decode(token_ids).strip()


@pytest.mark.parametrize("name", ["Theo", "Emma"])
def test_name_is_lost_with_the_recurrent_state(
    runner: ModelRunner, tokenizer: Tokenizer, source: ModelSource, name: str
) -> None:
    messages = [Message(m["role"], m["content"]) for m in far(name)]
    prompt = load_chat_format(source.directory, tokenizer).encode(messages)
    assert len(prompt) - CHUNK > REACH, "windows and convolutions could hand it on"
    assert answer(runner, tokenizer, prompt, None) == f"Your name is {name}."
    assert name not in answer(runner, tokenizer, prompt, CHUNK)
