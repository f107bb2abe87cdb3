"""Reasons of refused requests in the log: they have no names and texts that clients chose."""

from dataclasses import replace
from typing import Any

import httpx
import pytest
from fake_engine import STATE_FORMAT
from roost.server.observability.logging import ACCESS_LOGGER
from unpacked_states import saved_state

OTHER_MODEL = replace(STATE_FORMAT, model="topsecret").export(saved_state((5, 6)))


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        (
            "/v1/responses",
            {"json": {"input": "a", "metadata": {"topsecret": 1}}},
            "metadata.… must be a string",
        ),
        (
            "/v1/conversations",
            {"json": {"metadata": {"topsecret" * 9: "a"}}},
            "metadata.… must have at most 64 characters",
        ),
        ("/v1/states/import", {"content": OTHER_MODEL}, "the file is of another model (…)"),
    ],
)
async def test_a_reason_has_nothing_of_the_client(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, path: str, body: dict[str, Any], reason: str
) -> None:
    """The client gets the whole message."""
    with caplog.at_level("INFO", ACCESS_LOGGER):
        response = await client.post(path, **body)
    assert response.status_code == 400
    assert "topsecret" in response.json()["error"]["message"]
    (line,) = [record.getMessage() for record in caplog.records if record.name == ACCESS_LOGGER]
    assert line.endswith(f": {reason}")
    assert "topsecret" not in caplog.text
