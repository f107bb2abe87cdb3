"""Bounds of the stop strings of a request."""

from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from roost.server.schemas.generation_fields import MAX_TOTAL_STOP_CHARACTERS


@pytest.mark.parametrize(
    ("path", "param", "body"),
    [
        ("/v1/completions", "stop", {"prompt": "a"}),
        ("/v1/chat/completions", "stop", {"messages": [{"role": "user", "content": "a"}]}),
        ("/generate", "stop", {"token_ids": [4]}),
        ("/v1/messages", "stop_sequences", {"messages": [{"role": "user", "content": "a"}]}),
    ],
)
async def test_total_length_is_bounded(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, param: str, body: dict[str, Any]
) -> None:
    strings = [f"{number:02d}" + "a" * 254 for number in range(64)]
    assert sum(map(len, strings)) == MAX_TOTAL_STOP_CHARACTERS
    accepted = await client.post(path, json={**body, "max_tokens": 2, param: strings})
    assert accepted.status_code == 200, accepted.text
    num_requests = len(engine.requests)
    refused = await client.post(path, json={**body, "max_tokens": 2, param: [*strings[1:], "b" * 257]})
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert message.startswith(f"{param}: stop strings may have 16384 characters together, got 16385")
    assert len(engine.requests) == num_requests
