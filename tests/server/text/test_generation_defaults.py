"""generation_config.json, and what a request makes of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_server import served_model
from roost.engine import CheckpointError, EngineConfig, open_model
from roost.server.generation.requests import chat_params, completion_params
from roost.server.openai.completions import ChatBody, CompletionBody
from roost.server.text.served_model import GenerationDefaults, ServedModel, open_served_model, read_defaults
from roost.server.text.tokenizer import Tokenizer

HI = [{"role": "user", "content": "hi"}]

SAMPLING = {"temperature": 0.6, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "typical_p": 0.7}


def write(directory: Path, name: str, content: Any) -> None:
    (directory / name).write_text(content if isinstance(content, str) else json.dumps(content))


def test_no_directory_and_no_file(tmp_path: Path) -> None:
    assert read_defaults(None, 100) == read_defaults(tmp_path, 100) == GenerationDefaults()


def test_all_that_is_understood(tmp_path: Path) -> None:
    content = {
        "_from_model_config": True,
        "bos_token_id": 2,
        "do_sample": True,
        "eos_token_id": [1, 7],
        "max_new_tokens": 99,
        "min_p": 0.1,
        "temperature": 0.6,
        "top_k": 40,
        "top_p": 0.9,
        "typical_p": 0.7,
        "transformers_version": "4.41",
    }
    write(tmp_path, "generation_config.json", content)
    expected = GenerationDefaults(SAMPLING, max_tokens=99, end_token_ids=(1, 7))
    assert read_defaults(tmp_path, 100) == expected


def test_not_to_sample_leaves_openais_defaults(tmp_path: Path) -> None:
    write(tmp_path, "generation_config.json", {"do_sample": False, "temperature": 0.1, "eos_token_id": 7})
    assert read_defaults(tmp_path, 100) == GenerationDefaults(end_token_ids=(7,))


def test_end_tokens_may_stand_in_the_models_config(tmp_path: Path) -> None:
    write(tmp_path, "config.json", {"eos_token_id": 1, "temperature": 0.1})
    assert read_defaults(tmp_path, 100) == GenerationDefaults(end_token_ids=(1,))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "JSON"),
        ([], "object"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"eos_token_id": "x"}, "eos_token_id"),
        ({"eos_token_id": [1, 100]}, "eos_token_id"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: Any, named: str) -> None:
    write(tmp_path, "generation_config.json", content)
    with pytest.raises(CheckpointError, match=rf"generation_config\.json.*{named}"):
        read_defaults(tmp_path, 100)


@pytest.fixture
def opinionated(tokenizer: Tokenizer) -> ServedModel:
    return served_model(tokenizer, GenerationDefaults(SAMPLING, max_tokens=99, end_token_ids=(7, 1)))


def test_a_silent_request_takes_the_checkpoints_defaults(opinionated: ServedModel) -> None:
    (params,) = chat_params(ChatBody.model_validate({"messages": HI}), opinionated)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.6, 0.9, 40, 0.1)
    assert params.typical_p == 0.7
    assert params.max_tokens == 99
    assert params.end_token_ids == (1, 107, 7)


def test_a_request_has_the_last_word(opinionated: ServedModel) -> None:
    fields = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "typical_p": 1, "max_tokens": 3}
    (params,) = chat_params(ChatBody.model_validate({"messages": HI, **fields}), opinionated)
    assert (params.temperature, params.top_p, params.top_k, params.min_p, params.typical_p) == (0, 1, 0, 0, 1)
    assert params.max_tokens == 3
    newer = ChatBody.model_validate({"messages": HI, "max_tokens": 3, "max_completion_tokens": 7})
    assert chat_params(newer, opinionated)[0].max_tokens == 7


def test_completions_keep_their_own_limit(opinionated: ServedModel) -> None:
    (params,) = completion_params(CompletionBody.model_validate({"prompt": "a"}), opinionated)
    assert params.max_tokens == 16
    (params,) = completion_params(CompletionBody.model_validate({"prompt": "a", "max_tokens": 0}), opinionated)
    assert params.max_tokens == 0


def test_a_chat_without_limits_goes_on_until_the_model_stops(model: ServedModel) -> None:
    (params,) = chat_params(ChatBody.model_validate({"messages": HI}), model)
    assert params.max_tokens is None


def test_seeds_that_are_left_out_differ(model: ServedModel) -> None:
    body = CompletionBody.model_validate({"prompt": "a", "n": 5})
    assert len({params.seed for params in completion_params(body, model)}) == 5


@pytest.mark.parametrize(("seed", "used"), [(5, 5), (-1, 2**64 - 1), (2**64 + 3, 3)])
def test_any_whole_number_is_a_seed(model: ServedModel, seed: int, used: int) -> None:
    (params,) = chat_params(ChatBody.model_validate({"messages": HI, "seed": seed}), model)
    assert params.seed == used


def test_prompt_logprobs_are_only_for_echoes(model: ServedModel) -> None:
    for echo, expected in ((False, None), (True, 3)):
        body = CompletionBody.model_validate({"prompt": "a", "logprobs": 3, "echo": echo})
        (params,) = completion_params(body, model)
        assert (params.logprobs, params.prompt_logprobs) == (3, expected)


def test_the_demo_can_be_opened() -> None:
    model = open_served_model(open_model("demo"), EngineConfig())
    assert (model.id, model.tokenizer.vocab_size) == ("demo", 3072)
    assert model.end_token_ids == (1, *model.tokenizer.encode("<end_of_turn>"))
    assert model.defaults.sampling == {"temperature": 0.7, "top_p": 0.9}


def test_the_fingerprint_follows_what_may_change_the_answers() -> None:
    demo = open_model("demo")
    same = [open_served_model(demo, EngineConfig(), name).fingerprint for name in (None, "other")]
    others = [
        open_served_model(demo, EngineConfig(seed=1)).fingerprint,
        open_served_model(demo, EngineConfig(dtype="float32")).fingerprint,
        open_served_model(replace(demo, config=replace(demo.config, window=64)), EngineConfig()).fingerprint,
    ]
    assert same[0] == same[1]
    assert len({same[0], *others}) == 4
