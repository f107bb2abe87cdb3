"""Predicted outputs: what the engine gets of them, and how their tokens are counted."""

import json
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from roost.engine import DraftCounts, PredictionUse
from roost.engine.types.config import MAX_PREDICTION
from roost.server.generation.service import Service

HI = [{"role": "user", "content": "hi"}]


def predicted(content: Any = "abc") -> dict[str, Any]:
    return {"prediction": {"type": "content", "content": content}}


async def chat(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    response = await client.post("/v1/chat/completions", json={"messages": HI, "max_tokens": 3, **fields})
    assert response.status_code == 200, response.text
    return response


@pytest.fixture
def engine(engine: FakeEngine) -> FakeEngine:
    """An engine that drafts."""
    engine.drafts = DraftCounts(accepted=(0,))
    engine.prediction = PredictionUse(0b10111, 0b00110)
    return engine


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("abc", "abc"),
        ("a <bos> b", "a <bos> b"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"),
        ("", ""),
        ([], ""),
    ],
)
async def test_the_engine_gets_the_predictions_tokens(
    client: httpx.AsyncClient, engine: FakeEngine, service: Service, content: Any, text: str
) -> None:
    await chat(client, n=2, **predicted(content))
    expected = service.model.tokenizer.encode(text, control_tokens=False)
    assert [list(request.predicted_token_ids) for request in engine.requests] == [expected] * 2


async def test_a_long_prediction_is_cut(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await chat(client, **predicted("abcd" * MAX_PREDICTION))
    assert len(engine.requests[0].predicted_token_ids) == MAX_PREDICTION


async def test_completions_have_predictions_too(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await client.post("/v1/completions", json={"prompt": "a", **predicted()})
    assert len(engine.requests[0].predicted_token_ids) == 3


async def test_without_speculation_a_prediction_is_not_encoded(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.drafts = None
    await chat(client, **predicted())
    assert not engine.requests[0].predicted_token_ids


async def test_usage_counts_the_tokens_of_all_choices(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    usage = (await chat(client, n=2, **predicted())).json()["usage"]
    assert usage["completion_tokens_details"] == {
        "reasoning_tokens": 0,
        "accepted_prediction_tokens": 4,
        "rejected_prediction_tokens": 4,
    }


async def test_streams_count_them_at_the_end(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    response = await chat(client, stream=True, stream_options=options, **predicted())
    got = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    counts = [chunk["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] for chunk in got]
    assert (counts[0], counts[-1]) == (0, 2)
