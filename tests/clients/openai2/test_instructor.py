"""instructor in each of its modes for servers with OpenAI's API."""

from typing import Any

import instructor
import pytest
from openai import OpenAI
from questions import City
from server_process import API_KEY

ASK: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": "Tell me of Madrid."}],
    "temperature": 0,
    "max_tokens": 200,
    "max_retries": 0,
}


def build(base_url: str, mode: instructor.Mode) -> instructor.Instructor:
    return instructor.from_openai(OpenAI(base_url=base_url, api_key=API_KEY, max_retries=0), mode=mode)


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA])
def test_object(base_url: str, mode: instructor.Mode) -> None:
    assert isinstance(build(base_url, mode).chat.completions.create(response_model=City, **ASK), City)


def test_with_the_completion(base_url: str) -> None:
    client = build(base_url, instructor.Mode.TOOLS)
    found, completion = client.chat.completions.create_with_completion(response_model=City, **ASK)
    assert isinstance(found, City)
    assert completion.usage.completion_tokens > 0


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA])
def test_partial_objects(base_url: str, mode: instructor.Mode) -> None:
    """The object grows with the stream."""
    parts = list(build(base_url, mode).chat.completions.create_partial(response_model=City, **ASK))
    assert len(parts) > 1
    City.model_validate(parts[-1].model_dump())


def test_several_objects(base_url: str) -> None:
    """One call streams several objects; the token limit may end the list early."""
    client = build(base_url, instructor.Mode.TOOLS)
    found = next(iter(client.chat.completions.create_iterable(response_model=City, **ASK)))
    assert isinstance(found, City)


def test_json_mode(base_url: str) -> None:
    """JSON mode guarantees an object, not the schema, so the response model accepts any."""

    class Loose(instructor.OpenAISchema):
        name: Any = None

    client = build(base_url, instructor.Mode.JSON)
    assert isinstance(client.chat.completions.create(response_model=Loose, **ASK), Loose)
