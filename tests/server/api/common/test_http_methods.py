"""HEAD and OPTIONS for existing routes."""

import httpx
import pytest
from roost.server.generation.service import Service


@pytest.mark.parametrize("path", ["/", "/health", "/health/ready", "/metrics", "/version", "/v1/models", "/load"])
async def test_head_is_get_without_the_body(client: httpx.AsyncClient, path: str) -> None:
    got, head = await client.get(path), await client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert head.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/health", "GET, HEAD, OPTIONS"),
        ("/v1/chat/completions", "OPTIONS, POST"),
        ("/v1/states/some", "DELETE, GET, HEAD, OPTIONS"),
    ],
)
async def test_options_lists_the_methods(client: httpx.AsyncClient, path: str, allow: str) -> None:
    response = await client.options(path)
    assert (response.status_code, response.headers["allow"], response.content) == (204, allow, b"")


async def test_unknown_paths_stay_unknown(client: httpx.AsyncClient) -> None:
    assert (await client.head("/nothing")).status_code == 404
    assert (await client.options("/nothing")).status_code == 404
    assert (await client.head("/v1/chat/completions")).status_code == 405


async def test_head_does_not_wait_for_a_stream(client: httpx.AsyncClient, service: Service) -> None:
    body = {"input": "hi", "background": True, "stream": True, "max_output_tokens": 3}
    created = await client.post("/v1/responses", json=body)
    response_id = created.text.partition('"id":"')[2].partition('"')[0]
    head = await client.head(f"/v1/responses/{response_id}?stream=true")
    assert (head.status_code, head.content) == (200, b"")
