"""Several names of one model, and Hugging Face's client, which always sends the same name."""

import json
from dataclasses import replace

import httpx
import pytest
from fake_engine import FakeEngine
from fake_server import client_of, live, make_service
from huggingface_hub import AsyncInferenceClient
from roost.server.app import create_app
from roost.server.text.served_model import ServedModel

SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def model(model: ServedModel) -> ServedModel:
    return replace(model, aliases=("dummy", "gpt-4o"))


async def test_requests_may_use_any_name_and_responses_have_the_first(client: httpx.AsyncClient) -> None:
    for name in ("counter", "dummy", "gpt-4o"):
        body = {"model": name, "messages": HI, "max_tokens": 1}
        answers = [(await client.post(path, json=body)).json() for path in ("/v1/chat/completions", "/v1/messages")]
        assert [answer["model"] for answer in answers] == ["counter", "counter"]
        assert (await client.get(f"/v1/models/{name}")).json()["id"] == name
    error = (await client.post("/v1/completions", json={"model": "gpt", "prompt": "a"})).json()["error"]
    assert error["message"] == "the model 'gpt' does not exist: this server has counter, dummy, gpt-4o"


async def test_all_names_are_listed(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["counter", "dummy", "gpt-4o"]
    assert {model["root"] for model in listed["data"]} == {"counter"}
    shown = (await client.get("/v1/models", headers={"anthropic-version": "2023-06-01"})).json()
    assert [model["id"] for model in shown["data"]] == ["counter", "dummy", "gpt-4o"]
    assert (shown["first_id"], shown["last_id"]) == ("counter", "gpt-4o")


async def test_the_schema_in_value_is_enforced(engine: FakeEngine, model: ServedModel) -> None:
    """With Hugging Face's own client, which names the model `dummy` and puts a schema into `value`."""
    async with live(make_service(engine, model)) as server:
        wanted = {"type": "json_object", "value": SCHEMA}
        async with AsyncInferenceClient(base_url=f"{server.base_url}/v1", api_key="-") as client:
            answer = await client.chat_completion(HI, response_format=wanted, max_tokens=100)
    assert json.loads(answer.choices[0].message.content or "")["n"] in (1, 2)


async def test_a_text_takes_no_schema_in_value(model: ServedModel) -> None:
    async with client_of(create_app(make_service(FakeEngine(), model))) as client:
        body = {"messages": HI, "response_format": {"type": "text", "value": SCHEMA}}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 400
