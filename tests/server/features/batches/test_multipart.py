"""Forms with files, as clients of all kinds send them, and what they may cost, on both databases."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from databases import opened
from fake_engine import FakeEngine
from fake_server import features_with, make_service, until
from roost.server.app import create_app
from roost.server.features.batches.batch_store import BatchStore
from roost.server.features.batches.open_batches import OpenBatches
from roost.server.generation.service import Service
from roost.server.http.multipart import MAX_FORM_BYTES
from roost.server.text.served_model import ServedModel

LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}'


@pytest.fixture
def service(engine: FakeEngine, model: ServedModel) -> Service:
    return make_service(engine, model)


@pytest.fixture
async def client(service: Service, address: str) -> AsyncIterator[httpx.AsyncClient]:
    store = BatchStore(opened(address), 1000.0)
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


HEADERS = {"content-type": "multipart/form-data; boundary=x"}


def part(name: str, value: bytes) -> bytes:
    return b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)


PURPOSE, END = part("purpose", b"batch"), b"--x--\r\n"


async def test_other_fields_are_dropped_with_a_warning(client: httpx.AsyncClient) -> None:
    form = PURPOSE + part("user", b"u" * 10_000) + part("file", LINE) + END
    response = await client.post("/v1/files", headers=HEADERS, content=form)
    assert (response.status_code, response.headers["x-roost-warnings"]) == (200, "user")


@pytest.mark.parametrize(
    "piece",
    [
        part("user", b"u" * 1000),
        part("purpose", b"batch"),
        part("", b""),
        b"--x\r\n\r\n\r\n",
        b"--x\r\nContent-Disposition: form-data; name=file\r\n\r\n\r\n",
        b"--x\r\n" + b"A: b\r\n" * 8 + b"\r\n\r\n",
    ],
    ids=["fields", "one field", "no name", "no header", "files", "headers"],
)
async def test_a_form_without_its_file_is_bounded(client: httpx.AsyncClient, piece: bytes) -> None:
    """An endless form is refused with the end of the connection, soon after its limit."""
    num_sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_sent
        while True:
            num_sent += len(piece)
            assert num_sent < MAX_FORM_BYTES + 2 * len(piece)
            yield piece

    response = await client.post("/v1/files", headers=HEADERS, content=endless())
    assert (response.status_code, response.headers["connection"]) == (413, "close")
    assert "the form has more than 65,536 bytes beside the file" in response.json()["error"]["message"]


async def test_a_form_is_charged_until_its_upload_ends(client: httpx.AsyncClient, service: Service) -> None:
    """Its fields, and the part of its file that is not written yet."""
    pieces, free = asyncio.Queue[bytes](), service.admissions._kept.num_bytes

    async def slow() -> AsyncIterator[bytes]:
        while piece := await pieces.get():
            yield piece

    upload = asyncio.create_task(client.post("/v1/files", headers=HEADERS, content=slow()))
    field, beginning = part("user", b"u" * 20_000), PURPOSE + part("file", LINE)[:-2]
    pieces.put_nowait(field)
    await until(lambda: service.admissions._kept.num_bytes == free + len(field))
    pieces.put_nowait(beginning)
    await until(lambda: service.admissions._kept.num_bytes == free + len(field) + len(beginning))
    for piece in (b"\r\n" + END, b""):
        pieces.put_nowait(piece)
    assert (await upload).status_code == 200
    assert service.admissions._kept.num_bytes == free


@pytest.mark.parametrize("boundary", ["b" * 257, "b" * 300, "b" * 5000])
async def test_a_boundary_that_is_too_long_is_refused(client: httpx.AsyncClient, boundary: str) -> None:
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    response = await client.post("/v1/files", headers=headers, content=b"")
    assert response.status_code == 400
    assert "Boundary length" in response.json()["error"]["message"]


async def test_an_upload_does_not_wait_for_stalled_ones(client: httpx.AsyncClient) -> None:
    """Twenty clients of the same tenant have sent some lines, and send no more."""
    go_on, num_stalled = asyncio.Event(), 0

    async def stalled() -> AsyncIterator[bytes]:
        nonlocal num_stalled
        yield PURPOSE + part("file", LINE + b"\n")[:-2]
        num_stalled += 1
        await go_on.wait()
        yield b"\r\n" + END

    uploads = [asyncio.create_task(client.post("/v1/files", headers=HEADERS, content=stalled())) for _ in range(20)]
    await until(lambda: num_stalled == 20)
    assert (await upload(client, b"")).status_code == 200
    assert not any(task.done() for task in uploads)
    go_on.set()
    assert {response.status_code for response in await asyncio.gather(*uploads)} == {200}
