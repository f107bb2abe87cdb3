"""Numbers of request bodies, generated from the table of sampling fields."""

from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from pydantic import ValidationError
from roost.engine import SAMPLING_FIELDS
from roost.server.features.anthropic.schemas import MessagesBody
from roost.server.features.native.generate import GenerateBody
from roost.server.features.responses.body import ResponseBody
from roost.server.generation.requests import sampling_params
from roost.server.openai.completions import ChatBody, CompletionBody
from roost.server.schemas.generation_fields import NUMBERS, SamplingFields, number
from roost.server.text.served_model import ServedModel

MESSAGES = [{"role": "user", "content": "a"}]


class Sample(SamplingFields):
    """A body of two numbers."""

    top_p: float | None = number("top_p")
    presence_penalty: float = number("presence_penalty")


def test_a_default_that_the_checkpoint_may_have_is_none() -> None:
    assert Sample().model_dump(include={"top_p", "presence_penalty"}) == {"top_p": None, "presence_penalty": 0.0}


@pytest.mark.parametrize("fields", [{"top_p": -0.1}, {"top_p": 1.1}, {"presence_penalty": 2.1}, {"top_p": "1"}])
def test_bounds_are_those_of_the_table(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Sample.model_validate(fields)


def test_only_numbers_that_the_body_has_are_requested(model: ServedModel) -> None:
    body = Sample.model_validate({"top_p": 0.5, "temperature": 2, "min_p": "x"})
    (params,) = sampling_params(body, model, 1)
    assert (params.top_p, params.temperature, params.min_p) == (0.5, 1.0, 0.0)


def test_bodies_and_their_numbers() -> None:
    assert set(NUMBERS) == {name for name, row in SAMPLING_FIELDS.items() if row.request is not None}
    for body in (ChatBody, CompletionBody, GenerateBody):
        assert set(NUMBERS) <= body.model_fields.keys()
    for body in (ChatBody, ResponseBody):
        for name in set(NUMBERS) & body.model_fields.keys():
            assert body.model_fields[name].annotation in (kind := SAMPLING_FIELDS[name].kind, kind | None)
    assert set(NUMBERS) - ResponseBody.model_fields.keys() == {"typical_p"}
    assert set(NUMBERS) & MessagesBody.model_fields.keys() == {"temperature", "top_p", "top_k", "min_p"}


NEUTRAL = {"typical_p": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "repetition_penalty": 1.0}


@pytest.mark.parametrize(
    ("path", "body", "neutral"),
    [
        ("/v1/responses", {"input": "a", "max_output_tokens": 1}, {"typical_p": 1}),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 1}, NEUTRAL),
    ],
)
async def test_numbers_of_other_apis_are_refused_unless_neutral(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, body: dict[str, Any], neutral: dict[str, Any]
) -> None:
    assert (await client.post(path, json={**body, "top_k": 5, **neutral})).status_code == 200
    assert engine.requests[-1].params.top_k == 5
    for name in neutral:
        response = await client.post(path, json={**body, name: 0.5})
        assert response.status_code == 400
        assert f"{name} is not supported: use it in /v1/chat/completions" in response.text
