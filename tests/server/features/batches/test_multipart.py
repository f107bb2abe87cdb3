"""Names of uploaded files, as clients of all kinds send them, on both databases."""

from collections.abc import AsyncIterator

import httpx
import pytest
from databases import opened
from fake_engine import FakeEngine
from fake_server import features_with, make_service
from roost.server.app import create_app
from roost.server.features.batches.batch_store import BatchStore
from roost.server.features.batches.open_batches import OpenBatches
from roost.server.text.served_model import ServedModel

LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}'


@pytest.fixture
async def client(engine: FakeEngine, model: ServedModel, address: str) -> AsyncIterator[httpx.AsyncClient]:
    store = BatchStore(opened(address), 1000.0)
    service = make_service(engine, model)
    app = create_app(service, features=features_with(service, OpenBatches(service, store)))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://roost") as client:
        yield client
    store.close()


async def upload(client: httpx.AsyncClient, parameters: bytes, field: bytes = b'name="file"') -> httpx.Response:
    """Sends a file with these parameters of its header."""
    purpose = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    head = b"--x\r\nContent-Disposition: form-data; " + field + parameters + b"\r\n\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x"}
    return await client.post("/v1/files", headers=headers, content=purpose + head + LINE + b"\r\n--x--\r\n")


NAMES = (
    (b'; filename="in.jsonl"', "in.jsonl"),
    (b"; filename=in.jsonl", "in.jsonl"),
    (b';filename = "a; b=\\"c\\".jsonl"', 'a; b="c".jsonl'),
    (b'; FileName="in.jsonl"', "in.jsonl"),
    (b'; filename="%22a%22.jsonl"', "%22a%22.jsonl"),  # as browsers quote it
    ('; filename="Grüße.jsonl"'.encode(), "Grüße.jsonl"),
    ('; filename="Grüße.jsonl"'.encode("latin-1"), "Gr\ufffd\ufffde.jsonl"),
    (b'; filename="a\0b\x1bc"', "abc"),  # no database takes control characters
    ('; filename="a\x85b"'.encode(), "ab"),
    (b"; filename*=UTF-8''Gr%C3%BC%C3%9Fe.jsonl", "file"),  # RFC 7578 forbids this form
    (b"; filename=\"Gru.jsonl\"; filename*=utf-8''Gr%C3%BC.jsonl", "Gru.jsonl"),
    (b'; filename*0="a"; filename*=b; filename="in.jsonl"', "in.jsonl"),
    (b"; filename*0=a; filename*1=b", "file"),
    (b'; filename=""', "file"),
    (b"", "file"),
)
"""Parameters of a header, and the name that they give a file."""


async def test_a_file_keeps_its_name(client: httpx.AsyncClient) -> None:
    for parameters, name in NAMES:
        response = await upload(client, parameters)
        assert (response.status_code, response.json().get("filename"), parameters) == (200, name, parameters)
        assert (await client.get(f"/v1/files/{response.json()['id']}")).json()["filename"] == name


async def test_a_field_of_another_name_is_not_the_file(client: httpx.AsyncClient) -> None:
    for field in (b"name*=idna''file", b"name*=utf-8''file", b'name="a\0"', b"name*0=a; name*=b"):
        response = await upload(client, b'; filename="in.jsonl"', field)
        assert (response.status_code, response.json()["error"]["message"]) == (400, "the form has no field file")
