"""Sampling fields of a request and the parameters that the engine gets."""

from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from roost.engine import SamplingParams, TokenLogprobs
from roost.server.generation.delta import Delta
from roost.server.openai.completions import most_likely
from roost.server.text.tokenizer import Tokenizer

A, B = 4, 5


async def complete(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2, **fields})


async def params_of(client: httpx.AsyncClient, engine: FakeEngine, **fields: Any) -> SamplingParams:
    """Returns the parameters of a request with these fields."""
    assert (await complete(client, **fields)).status_code == 200
    return engine.requests[-1].params


async def test_penalties_and_biases(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    params = await params_of(
        client,
        engine,
        frequency_penalty=-1,
        presence_penalty=0.5,
        repetition_penalty=1.2,
        logit_bias={"7": 5, "511": -100, "07": 6},
        allowed_token_ids=[7, 9],
    )
    assert (params.frequency_penalty, params.presence_penalty, params.repetition_penalty) == (-1, 0.5, 1.2)
    assert params.logit_bias == ((7, 6.0), (511, -100.0))
    assert params.allowed_token_ids == (7, 9)


async def test_no_mass_is_the_most_likely_token(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """Clients send `top_p: 0`, which vLLM refuses."""
    params = await params_of(client, engine, top_p=0, temperature=1.5)
    assert (params.temperature, params.top_p) == (0.0, 1.0)
    answer = (await client.post("/v1/responses", json={"input": "a", "top_p": 0, "temperature": 1.5})).json()
    assert (answer["top_p"], answer["temperature"]) == (0, 1.5)


@pytest.mark.parametrize(
    ("path", "body", "option"),
    [
        ("/v1/completions", {"prompt": "a"}, "include_usage"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, "include_usage"),
        ("/generate", {"token_ids": [5]}, "include_usage"),
        ("/v1/responses", {"input": "a"}, "include_obfuscation"),
    ],
)
async def test_stream_options_need_a_stream(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], option: str
) -> None:
    body = {**body, "max_tokens" if path != "/v1/responses" else "max_output_tokens": 2}
    response = await client.post(path, json={**body, "stream_options": {option: True}})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == "stream_options"
    for options in (None, {}):
        assert (await client.post(path, json={**body, "stream_options": options})).status_code == 200


async def test_tokens_may_be_named_by_their_ids(client: httpx.AsyncClient) -> None:
    fields = {"max_tokens": 2, "return_token_ids": True, "return_tokens_as_token_ids": True}
    answer = await client.post("/v1/completions", json={"prompt": "a", "logprobs": 1, **fields})
    (choice,) = answer.json()["choices"]
    names = [f"token_id:{token_id}" for token_id in choice["token_ids"]]
    assert choice["logprobs"]["tokens"] == names
    assert all(name in top for name, top in zip(names, choice["logprobs"]["top_logprobs"], strict=True))
    body = {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 1, **fields}
    (choice,) = (await client.post("/v1/chat/completions", json=body)).json()["choices"]
    entries = choice["logprobs"]["content"]
    assert [entry["token"] for entry in entries] == [f"token_id:{token_id}" for token_id in choice["token_ids"]]
    assert all(top["token"].startswith("token_id:") for entry in entries for top in entry["top_logprobs"])


async def test_responses_have_penalties_and_variables(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    penalties = {"frequency_penalty": 0.5, "presence_penalty": 0.25, "repetition_penalty": 1.5}
    body = {"input": "a", "max_output_tokens": 2, "chat_template_kwargs": {"mood": "x"}, **penalties}
    response = await client.post("/v1/responses", json=body)
    assert response.status_code == 200, response.text
    assert "x-roost-warnings" not in response.headers
    params = engine.requests[-1].params
    assert {name: getattr(params, name) for name in penalties} == penalties


@pytest.mark.parametrize(
    ("bias", "named"), [({"five": 1}, "the key 'five'"), ({"7": 1, "-5": 1}, "'-5'"), ({"7": 1, "600": 2}, "600")]
)
async def test_an_error_of_a_bias_names_its_key(client: httpx.AsyncClient, bias: dict[str, float], named: str) -> None:
    error = (await complete(client, logit_bias=bias)).json()["error"]
    assert error["param"] == "logit_bias"
    assert named in error["message"]


async def test_bad_words_are_bad_at_the_start_and_behind_a_space(
    client: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    params = await params_of(client, engine, bad_words=["a", "ab"])
    assert params.bad_words == tuple(tuple(tokenizer.encode(word)) for word in ("a", " a", "ab", " ab"))
    assert params.bad_words[0] == (A,)
    assert params.bad_words[2] == (A, B)


async def test_named_tokens_are_reported_beside_the_most_likely(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = (await complete(client, logprobs=1, logprob_token_ids=[29, 5])).json()
    assert engine.requests[-1].params.logprob_token_ids == (29, 5)
    assert answer["choices"][0]["logprobs"]["top_logprobs"][0] == {"b": -0.5, "z": -2.9}
    message = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "logprobs": True}
    answer = (await client.post("/v1/chat/completions", json={**message, "logprob_token_ids": [29]})).json()
    assert [top["token"] for top in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]] == ["z"]


async def test_choices_of_one_prompt_are_forks_of_the_first(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await complete(client, prompt=["a", "b"], n=3, seed=5)).status_code == 200
    ids = [request.id.rpartition("-")[2] for request in engine.requests]
    parents = [request.fork_of and request.fork_of.rpartition("-")[2] for request in engine.requests]
    assert (ids, parents) == (list("012345"), [None, "0", "0", None, "3", "3"])
    assert [request.params.seed for request in engine.requests] == [5, 6, 7, 5, 6, 7]


def scored(index: int, *logprobs: float) -> Delta:
    return Delta(index, logprobs=tuple(TokenLogprobs(value) for value in logprobs))


def test_the_most_likely_candidates_of_each_prompt_are_kept() -> None:
    """By the mean over their tokens, so that a short answer has no advantage."""
    choices = [scored(0, -3.0), scored(1, -1.0, -1.5), scored(2, -2.0), scored(3), scored(4, -9.0), scored(5, -0.1)]
    assert [choice.index for choice in most_likely(choices, 2, 3)] == [1, 2, 3, 5]
    assert [choice.index for choice in most_likely(choices, 3, 3)] == [0, 1, 2, 3, 4, 5]


async def test_best_of_makes_more_than_it_tells(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = (await complete(client, prompt=["a", "b"], n=1, best_of=3)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert [choice["text"] for choice in answer["choices"]] == ["bc", "cd"]
    assert answer["choices"][0]["logprobs"] is None
    assert len(engine.requests) == 6
    assert answer["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 3, "best_of": 2}, "best_of must be at least n, which is 3"),
        ({"best_of": 2, "stream": True}, "best_of larger than n cannot be streamed"),
        ({"logprob_token_ids": [5]}, "logprob_token_ids needs logprobs"),
        ({"allowed_token_ids": [1], "min_tokens": 1}, "min_tokens must be 0 where all of allowed_token_ids end"),
        (
            {"allowed_token_ids": [5, 5], "stop_token_ids": [5], "min_tokens": 2},
            "min_tokens must be 0 where all of allowed_token_ids end",
        ),
        ({"allowed_token_ids": [A], "bad_words": ["a"]}, "bad_words must leave at least one of allowed_token_ids"),
        ({"allowed_token_ids": [5] * 513}, "allowed_token_ids must hold at most 512 ids"),
        ({"bad_words": ["a" * 4096] * 3}, "bad_words must be at most 8192 characters in total"),
    ],
)
async def test_contradictions_are_refused(client: httpx.AsyncClient, fields: dict[str, Any], message: str) -> None:
    answer = await complete(client, **fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["message"].startswith(message)
    assert error["param"] in message


async def test_choices_share_one_mask_and_one_index_of_phrases(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """Both are made before the engine gets the request, once for all choices."""
    fields = {"n": 5, "allowed_token_ids": [*range(3, 500)], "bad_words": ["ab"]}
    assert (await complete(client, **fields)).status_code == 200
    params = [request.params for request in engine.requests]
    assert len({each.seed for each in params}) == 5
    assert len({id(each.static_mask) for each in params}) == 1
    assert len({id(each.bad_phrases) for each in params}) == 1
    assert len({id(each.allowed_token_ids) for each in params}) == 1
