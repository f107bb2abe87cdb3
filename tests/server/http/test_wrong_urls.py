"""Hints for URLs that do not exist, and the page that lists those that do."""

import re
from typing import Any

import httpx
import pytest
from fake_server import client_of
from roost.server.app import create_app
from roost.server.generation.service import Service
from roost.server.http.auth import Access, ApiKeys


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/completions", "/v1/completions"),
        ("/models", "/v1/models"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/v1/completion", "/v1/completions"),
        ("/v1/model", "/v1/models"),
        ("/v1/message", "/v1/messages"),
        ("/v1/response", "/v1/responses"),
        ("/v1/batch", "/v1/batches"),
        ("/v1//chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/V1/Chat/Completions", "/v1/chat/completions"),
        ("/openai/v1/chat/completions", "/v1/chat/completions"),
        ("/api/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/metrics", "/metrics"),
        ("/api/chat", "/v1/chat/completions"),
        ("/api/generate", "/v1/completions"),
        ("/api/tags", "/v1/models"),
        ("/api/ps", "/v1/models"),
        ("/completion", "/v1/completions"),
        ("/props", "/server_info"),
        ("/healthz", "/health"),
    ],
)
async def test_a_wrong_url_says_the_right_one(client: httpx.AsyncClient, path: str, right: str) -> None:
    response = await client.post(f"http://roost{path}", json={})
    assert response.status_code == 404
    assert response.json()["error"]["message"] == f"no such URL (POST {path}): use {right}"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/generate_stream", "use /v1/completions with stream: true"),
        ("/v1/uploads", "use /v1/files"),
        ("/v1/messages/batches", "use /v1/batches"),
        ("/infill", "/v1/completions continues a text"),
        ("/api/pull", "by MODEL"),
        *((path, "has no embeddings") for path in ("/v1/embeddings", "/api/embed", "/embed")),
        *((path, "/v1/completions with echo and logprobs") for path in ("/rerank", "/v1/rerank", "/pooling")),
        *((path, "/v1/completions with echo and logprobs") for path in ("/score", "/v1/score", "/classify")),
    ],
)
async def test_urls_of_other_servers_say_what_to_use_instead(client: httpx.AsyncClient, path: str, words: str) -> None:
    response = await client.post(path, json={"inputs": "a"})
    assert response.status_code == 404
    message = response.json()["error"]["message"]
    assert message.startswith(f"no such URL (POST {path}): ")
    assert words in message


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": "a", "parameters": {"max_new_tokens": 3}},
        {"text": "a", "sampling_params": {"max_new_tokens": 3}},
        {"input_ids": [4], "sampling_params": {}},
        {"prompt": "a", "max_tokens": 3, "stream": True},
    ],
)
async def test_bodies_of_other_servers_generate_are_not_found(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    response = await client.post("/generate", json=body)
    assert response.status_code == 404
    assert "prompt to /v1/completions, and token ids as token_ids" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/engines", "/" + "v1/" * 200])
async def test_a_url_without_a_right_one_says_where_all_are(client: httpx.AsyncClient, path: str) -> None:
    message = (await client.get(path)).json()["error"]["message"]
    assert message.endswith("): GET /docs lists the endpoints")


async def test_a_hint_has_the_prefix_of_a_proxy(service: Service) -> None:
    async with client_of(create_app(service, root_path="/llm")) as client:
        message = (await client.post("/llm/chat/completions", json={})).json()["error"]["message"]
        assert message.endswith("use /llm/v1/chat/completions")
        assert 'href="/llm/openapi.json"' in (await client.get("/llm/docs")).text


async def test_a_wrong_method_says_the_right_one(client: httpx.AsyncClient) -> None:
    message = (await client.get("/v1/completions")).json()["error"]["message"]
    assert message == "no such method here (GET /v1/completions): use POST"


async def test_a_text_sent_to_the_root_is_told_where_to_go(client: httpx.AsyncClient) -> None:
    """TGI's clients send to the root."""
    message = (await client.post("/", json={"inputs": "a"})).json()["error"]["message"]
    hint = "send texts to /v1/completions, and chats to /v1/chat/completions"
    assert message == f"no such method here (POST /): {hint}"


async def test_docs_lists_each_endpoint_without_a_key_and_loads_nothing(service: Service) -> None:
    async with client_of(create_app(service, Access(ApiKeys(["key"])))) as client:
        response = await client.get("/docs")
        schema = (await client.get("/openapi.json", headers={"x-api-key": "key"})).json()
    assert response.headers["content-type"].startswith("text/html")
    found = re.findall(r"<tr><td>(\w+)</td><td><code>(.+?)</code></td>", response.text)
    assert found == [(method.upper(), path) for path, methods in schema["paths"].items() for method in methods]
    assert not re.search(r"<(?:script|link|img|style)|src=", response.text)
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
