"""The routes, end to end within the process."""

import json
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from fake_server import VOCAB_SIZE, client_of, make_service, served_model
from roost.server.app import create_app
from roost.server.text.tokenizer import TokenIdsOnly, Tokenizer

HI = [{"role": "user", "content": "hi"}]


async def chat(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json={"messages": HI, "max_tokens": 3, **fields})


async def complete(client: httpx.AsyncClient, prompt: Any, **fields: Any) -> httpx.Response:
    return await client.post("/v1/completions", json={"prompt": prompt, **fields})


def choices(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return response.json()["choices"]


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON of a stream that ends as it should."""
    assert response.status_code == 200, response.text
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


async def test_chat_answers_in_openais_shape(client: httpx.AsyncClient) -> None:
    answer = (await chat(client, model="counter")).json()
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert (answer["model"], answer["system_fingerprint"]) == ("counter", "fp_test")
    assert isinstance(answer["created"], int)
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "ABC", "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": 14,
        "completion_tokens": 3,
        "total_tokens": 17,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


async def test_chat_streams_a_role_then_text_then_an_end(client: httpx.AsyncClient) -> None:
    response = await chat(client, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    got = chunks(response)
    assert {(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in got} == {
        (got[0]["id"], got[0]["created"], "counter", "chat.completion.chunk")
    }
    assert all("usage" not in chunk for chunk in got)
    reported = [(chunk["choices"][0]["delta"], chunk["choices"][0]["finish_reason"]) for chunk in got]
    assert reported == [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "A"}, None),
        ({"content": "B"}, None),
        ({"content": "C"}, None),
        ({}, "length"),
    ]


async def test_usage_comes_in_a_chunk_without_choices(client: httpx.AsyncClient) -> None:
    *others, last = chunks(await chat(client, stream=True, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in others)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3


async def test_usage_may_come_in_every_chunk(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    for response in (
        await chat(client, stream=True, stream_options=options),
        await complete(client, "a", max_tokens=3, stream=True, stream_options=options),
    ):
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks(response)]
        assert counts == sorted(counts)
        assert counts[-1] == 3


async def test_several_choices_differ_in_their_seeds(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    response = await chat(client, n=3, seed=-1)
    assert [choice["index"] for choice in choices(response)] == [0, 1, 2]
    assert [request.params.seed for request in engine.requests] == [2**64 - 1, 0, 1]
    assert response.json()["usage"]["prompt_tokens"] == 14
    assert response.json()["usage"]["completion_tokens"] == 9


async def test_chat_logprobs(client: httpx.AsyncClient) -> None:
    (choice,) = choices(await chat(client, max_tokens=1, logprobs=True, top_logprobs=2))
    assert choice["logprobs"] == {
        "content": [
            {
                "token": "A",
                "logprob": -10.9,
                "bytes": [65],
                "top_logprobs": [
                    {"token": "A", "logprob": -10.9, "bytes": [65]},
                    {"token": "B", "logprob": -11.9, "bytes": [66]},
                ],
            }
        ],
        "refusal": None,
    }


async def test_token_ids_come_on_demand(client: httpx.AsyncClient) -> None:
    response = await chat(client, return_token_ids=True)
    assert choices(response)[0]["token_ids"] == [109, 110, 111]
    assert response.json()["prompt_token_ids"][-1] == 108
    (choice,) = choices(await complete(client, [4], max_tokens=2, return_token_ids=True))
    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([4], [5, 6])


async def test_streamed_token_ids_are_all_there(client: httpx.AsyncClient) -> None:
    fields = {"max_tokens": 9, "stop_token_ids": [111], "return_token_ids": True, "stream": True}
    for got in (chunks(await chat(client, **fields)), chunks(await complete(client, [108], **fields))):
        ids = [token_id for chunk in got for token_id in chunk["choices"][0].get("token_ids", [])]
        assert ids == [109, 110, 111]
        assert got[-1]["choices"][0]["stop_reason"] == 111


async def test_completion_answers_in_openais_shape(client: httpx.AsyncClient) -> None:
    answer = (await complete(client, "a", max_tokens=2)).json()
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [
        {"index": 0, "text": "bc", "logprobs": None, "finish_reason": "length", "stop_reason": None}
    ]
    assert answer["usage"]["prompt_tokens"] == 2  # with BOS


async def test_completion_makes_sixteen_tokens_by_default(client: httpx.AsyncClient) -> None:
    assert choices(await complete(client, "a"))[0]["text"] == "bcdefghijklmnopq"


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a", ["bc", "bc"]),
        (["a", "x"], ["bc", "bc", "yz", "yz"]),
        ([4, 5], ["cd", "cd"]),
        ([[4], [27]], ["bc", "bc", "yz", "yz"]),
    ],
)
async def test_choices_go_prompt_by_prompt(client: httpx.AsyncClient, prompt: Any, texts: list[str]) -> None:
    got = choices(await complete(client, prompt, max_tokens=2, n=2))
    assert [choice["text"] for choice in got] == texts
    assert [choice["index"] for choice in got] == list(range(len(texts)))


async def test_bos_is_added_to_text_only(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await complete(client, "a")
    await complete(client, "a", add_special_tokens=False)
    await complete(client, [4])
    assert [tuple(request.prompt_token_ids) for request in engine.requests] == [(2, 4), (4,), (4,)]


async def test_an_empty_text_is_bos_alone(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await complete(client, "")).status_code == 200
    assert tuple(engine.requests[0].prompt_token_ids) == (2,)
    assert (await complete(client, "", add_special_tokens=False)).status_code == 400


async def test_scoring_a_prompt(client: httpx.AsyncClient) -> None:
    """Evaluation harnesses do this. Token 6 has -0.6, and so on; see the fake engine."""
    (choice,) = choices(await complete(client, [5, 6, 7], echo=True, logprobs=1, max_tokens=0))
    assert choice["text"] == "bcd"
    assert choice["logprobs"] == {
        "tokens": ["b", "c", "d"],
        "token_logprobs": [None, -0.6, -0.7],
        "top_logprobs": [None, {"c": -0.6}, {"d": -0.7}],
        "text_offset": [0, 1, 2],
    }
    assert choice["finish_reason"] == "length"


async def test_echoed_text_omits_the_bos_that_the_list_has(client: httpx.AsyncClient) -> None:
    (choice,) = choices(await complete(client, "a<end_of_turn>é", echo=True, logprobs=0, max_tokens=1))
    assert choice["text"].startswith("a<end_of_turn>é")
    assert choice["logprobs"]["tokens"][:5] == ["<bos>", "a", "<end_of_turn>", "bytes:\\xc3", "bytes:\\xa9"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 14, 14, 15]
    assert choice["logprobs"]["top_logprobs"][1] == {"a": -0.4}


async def test_a_streamed_completion_says_the_same_as_a_whole_one(client: httpx.AsyncClient) -> None:
    fields = {"echo": True, "logprobs": 2, "max_tokens": 3, "return_token_ids": True}
    (whole,) = choices(await complete(client, "ab", **fields))
    parts = [chunk["choices"][0] for chunk in chunks(await complete(client, "ab", stream=True, **fields))]
    assert "".join(part["text"] for part in parts) == whole["text"] == "abcde"
    for name, values in whole["logprobs"].items():
        assert [value for part in parts for value in part["logprobs"][name]] == values
    assert [token_id for part in parts for token_id in part["token_ids"]] == whole["token_ids"]
    assert parts[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert parts[-1]["finish_reason"] == whole["finish_reason"]


async def test_only_the_end_has_a_stop_reason(client: httpx.AsyncClient) -> None:
    (choice,) = choices(await complete(client, "a", stop=["xx", "ef"]))
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("bcd", "stop", "ef")
    (choice,) = choices(await complete(client, "a", stop="ef", include_stop_str_in_output=True))
    assert choice["text"] == "bcdef"
    (choice,) = choices(await complete(client, "a", stop_token_ids=[8]))
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("bcd", "stop", 8)
    (choice,) = choices(await complete(client, "a", stop_token_ids=[8], include_stop_str_in_output=True))
    assert choice["text"] == "bcde"


async def test_every_default_end_token_ends_an_answer(client: httpx.AsyncClient) -> None:
    """511 is "xi"; then come 0 and 1, `<pad>` and `<eos>`. 107 is `<end_of_turn>`."""
    (choice,) = choices(await complete(client, [510], return_token_ids=True))
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("xi", "stop", None)
    assert choice["token_ids"] == [511, 0, 1]
    (choice,) = choices(await complete(client, [104], return_token_ids=True))
    assert choice["token_ids"] == [105, 106, 107]
    (choice,) = choices(await complete(client, [104], ignore_eos=True, max_tokens=5))
    assert (choice["text"], choice["finish_reason"]) == ("@\nA", "length")
    (choice,) = choices(await complete(client, [104], min_tokens=5, max_tokens=5, return_token_ids=True))
    assert choice["token_ids"] == [105, 106, 108, 109, 110]


async def test_models(client: httpx.AsyncClient) -> None:
    model = {
        "id": "counter",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "roost",
        "root": "counter",
        "parent": None,
        "max_model_len": None,
    }
    assert (await client.get("/v1/models")).json() == {"object": "list", "data": [model]}
    assert (await client.get("/v1/models/counter")).json() == model
    response = await client.get("/v1/models/some/thing")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


async def test_tokenize_and_back(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/tokenize", json={"model": "counter", "prompt": "ab<eos>"})).json()
    assert answer == {"tokens": [2, 4, 5, 1], "count": 4, "max_model_len": None}
    answer = (await client.post("/detokenize", json={"tokens": answer["tokens"]})).json()
    assert answer == {"prompt": "ab<eos>"}
    answer = (await client.post("/tokenize", json={"prompt": "ab", "add_special_tokens": False})).json()
    assert answer["tokens"] == [4, 5]
    assert (await client.post("/detokenize", json={"tokens": []})).json() == {"prompt": ""}


async def test_tokenizer_info(client: httpx.AsyncClient) -> None:
    assert (await client.get("/tokenizer_info")).json() == {
        "tokenizer_class": None,
        "vocab_size": 512,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "chat_template": None,
    }


async def test_tokenize_renders_messages(client: httpx.AsyncClient) -> None:
    with_header = (await client.post("/tokenize", json={"messages": HI})).json()
    without = (await client.post("/tokenize", json={"messages": HI, "add_generation_prompt": False})).json()
    assert with_header["count"] == 14
    assert with_header["tokens"][: without["count"]] == without["tokens"]


@pytest.mark.parametrize("body", [{}, {"prompt": "a", "messages": HI}])
async def test_tokenize_wants_one_of_two(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    assert (await client.post("/tokenize", json=body)).status_code == 400


async def test_a_checkpoint_without_a_tokenizer_serves_ids(engine: FakeEngine) -> None:
    service = make_service(engine, served_model(TokenIdsOnly(VOCAB_SIZE)))
    async with client_of(create_app(service)) as client:
        (choice,) = choices(await complete(client, [5, 6], echo=True, logprobs=1, max_tokens=1, return_token_ids=True))
        assert choice["text"] == ""
        assert choice["token_ids"] == [7]
        assert choice["logprobs"]["tokens"] == ["token_id:5", "token_id:6", "token_id:7"]
        assert choice["logprobs"]["top_logprobs"][2] == {"token_id:7": -0.7}
        for path, body in (
            ("/v1/completions", {"prompt": "a"}),
            ("/v1/chat/completions", {"messages": HI}),
            ("/tokenize", {"prompt": "a"}),
            ("/detokenize", {"tokens": [4]}),
        ):
            response = await client.post(path, json=body)
            assert response.status_code == 400
            assert "tokenizer" in response.json()["error"]["message"]


async def test_health_before_ready(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.ready.clear()
    assert (await client.get("/health")).status_code == 200
    for path in ("/health/ready", "/v1/models"):
        response = await client.get(path)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
    assert (await chat(client)).json()["error"]["code"] == "model_loading"
    engine.ready.set()
    assert (await client.get("/health/ready")).status_code == 200


async def test_health_after_death(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.failure = RuntimeError("out of memory at 0x7f")
    for path in ("/health", "/health/ready", "/v1/models"):
        response = await client.get(path)
        assert response.status_code == 503
        assert "0x7f" not in response.text


async def test_metrics_are_plain_text_whatever_is_accepted(client: httpx.AsyncClient) -> None:
    response = await client.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "roost_slots 4.0" in response.text


async def test_a_chat_goes_on_with_the_assistants_words(client: httpx.AsyncClient) -> None:
    messages = [*HI, {"role": "assistant", "content": "a"}]
    (choice,) = choices(await chat(client, messages=messages, continue_final_message=True))
    assert choice["message"]["content"] == "bcd"
    rendered = await client.post("/tokenize", json={"messages": messages, "continue_final_message": True})
    assert rendered.json()["tokens"][-1] == 4


async def test_a_prompt_has_one_end(client: httpx.AsyncClient) -> None:
    messages = [*HI, {"role": "assistant", "content": "a"}]
    fields = {"continue_final_message": True, "add_generation_prompt": True}
    error = (await chat(client, messages=messages, **fields)).json()["error"]
    assert error["message"] == "continue_final_message and add_generation_prompt exclude each other"


async def test_prompts_are_cut_on_demand(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await complete(client, ["abc", "xyz"], truncate_prompt_tokens=2)
    response = await chat(client, truncate_prompt_tokens=4, truncation_side="right")
    assert [tuple(request.prompt_token_ids) for request in engine.requests] == [(2, 6), (2, 29), (2, 106, 24, 469)]
    assert response.json()["usage"]["prompt_tokens"] == 4
    error = (await complete(client, "a", truncate_prompt_tokens=0)).json()["error"]
    assert error["param"] == "truncate_prompt_tokens"


async def test_logprobs_of_the_prompt(client: httpx.AsyncClient) -> None:
    """They have vLLM's shape, and `echo` has its own number of them. Token i has -i / 10."""
    (choice,) = (await complete(client, [4, 5], add_special_tokens=False, prompt_logprobs=2)).json()["choices"]
    first, second = choice["prompt_logprobs"]
    assert first is None
    assert {token_id: (each["logprob"], each["rank"]) for token_id, each in second.items()} == {
        "5": (-0.5, 1),
        "6": (-1.5, 2),
    }
    for echoed, asked in ((3, 1), (0, 2)):
        answer = await complete(client, [4, 5], echo=True, logprobs=echoed, prompt_logprobs=asked, max_tokens=0)
        (choice,) = answer.json()["choices"]
        assert len(choice["logprobs"]["top_logprobs"][-1]) == max(echoed, 1)
        assert len(choice["prompt_logprobs"][-1]) == asked
    answer = (await chat(client, prompt_logprobs=0, n=2)).json()
    assert [each is None or len(each) for each in answer["prompt_logprobs"]] == [True] + [1] * 13
    for ask in (chat(client, prompt_logprobs=1, stream=True), complete(client, "a", prompt_logprobs=1, stream=True)):
        response = await ask
        assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt_logprobs")


async def test_the_operators_limit_is_above_all_others(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    service = make_service(engine, served_model(tokenizer, max_tokens_limit=4))
    async with client_of(create_app(service)) as client:
        await chat(client, max_tokens=None)
        await chat(client, max_tokens=100)
        await chat(client, max_tokens=2)
        await complete(client, "a")
    assert [request.params.max_tokens for request in engine.requests] == [4, 4, 2, 4]
