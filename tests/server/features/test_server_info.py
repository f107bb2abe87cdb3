"""What `/server_info` and other endpoints tell a key holder, and what an operator."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fake_server import client_of
from pydantic import SecretStr
from roost.server.app import create_app, open_features
from roost.server.feature import Opening
from roost.server.generation.service import Service
from roost.server.http.auth import Access, ApiKeys
from roost.server.settings.settings import all_settings

ALICE, ROOT = {"authorization": "Bearer a"}, {"authorization": "Bearer root"}


@pytest.fixture
async def keyed(service: Service, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Client of a server with keys, whose store is a file in `tmp_path`."""
    settings = all_settings()(store=SecretStr(f"sqlite://{tmp_path}/store.db"))
    features = open_features(Opening(service, settings))
    async with client_of(
        create_app(service, Access(ApiKeys(["alice:a", "bob:b"]), ApiKeys(["root"])), features)
    ) as client:
        yield client
    for feature in features:
        await feature.close()


async def test_a_key_holder_learns_no_path_of_the_operator(keyed: httpx.AsyncClient, tmp_path: Path) -> None:
    """No endpoint without an id has the address of the store, but one that needs an admin key."""
    paths = (await keyed.get("/openapi.json", headers=ALICE)).json()["paths"]
    plain = [path for path, methods in paths.items() if "get" in methods and "{" not in path]
    assert len(plain) > 10
    for path in plain:
        assert str(tmp_path) not in (await keyed.get(path, headers=ALICE)).text
    assert (await keyed.get("/server_info", headers=ALICE)).json()["store"] == "sqlite"
    assert (await keyed.get("/debug/server_info", headers=ALICE)).status_code == 401
    told = (await keyed.get("/debug/server_info", headers=ROOT)).json()
    assert told["store_address"] == f"sqlite://{tmp_path}/store.db"
    assert (await keyed.get("/server_info", headers=ALICE)).json().items() <= told.items()
