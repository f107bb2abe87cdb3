"""Servers under a path of a proxy, which removes it or leaves it there."""

from collections.abc import AsyncIterator

import httpx
import pytest
from fake_server import client_of
from roost.server.app import create_app
from roost.server.generation.service import Service
from roost.server.http.auth import Access, ApiKeys
from roost.server.settings import SettingsError, load_settings

KEY, ROOT = {"authorization": "Bearer k"}, {"authorization": "Bearer root"}


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(service, Access(ApiKeys(["k"]), ApiKeys(["root"])), root_path="/llm")) as client:
        yield client


@pytest.mark.parametrize("prefix", ["", "/llm"])
async def test_paths_work_with_and_without_the_prefix(client: httpx.AsyncClient, prefix: str) -> None:
    assert (await client.get(f"{prefix}/health")).status_code == 200
    assert (await client.get(f"{prefix}/v1/models")).status_code == 401
    assert (await client.get(f"{prefix}/v1/models", headers=KEY)).status_code == 200
    for path in ("/debug/profile", "/v1/usage"):
        assert (await client.post(f"{prefix}{path}", headers=KEY)).status_code == 401
    assert (await client.get(f"{prefix}/v1/usage", headers=ROOT)).status_code == 404  # without a database


async def test_links_have_the_prefix(client: httpx.AsyncClient) -> None:
    assert "<code>http://roost/llm/v1</code>" in (await client.get("/docs")).text
    assert {"url": "/llm"} in (await client.get("/openapi.json", headers=KEY)).json()["servers"]


@pytest.mark.parametrize("path", ["llm", "/", "/llm/", "/v1", "/debug/x", "/a b"])
def test_a_prefix_has_one_form(path: str) -> None:
    with pytest.raises(SettingsError, match=r"^--root-path "):
        load_settings({"root_path": path})
