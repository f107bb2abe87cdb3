"""The chat page as it is sent; what it does in a browser is tested in one."""

import base64
import hashlib
import re

import httpx
from roost.server.access import Access
from roost.server.app import create_app
from roost.server.keys import ApiKeys
from roost.server.service import Service


async def test_its_policy_allows_what_it_holds_and_nothing_else(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy


async def test_it_names_no_other_place(client: httpx.AsyncClient) -> None:
    text = (await client.get("/")).text.replace("xmlns='http" + "://www.w3.org/2000/svg'", "")  # a name, not a place
    assert "://" not in text
    assert not re.search(r"\son\w+=|\sstyle=|\ssrc=|innerHTML|@import", text)


async def test_it_needs_no_key(service: Service) -> None:
    transport = httpx.ASGITransport(create_app(service, Access(ApiKeys(["sesame"]))))
    async with httpx.AsyncClient(transport=transport, base_url="http://roost") as client:
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/load")).status_code == 401
