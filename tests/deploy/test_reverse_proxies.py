"""Hostile headers, large uploads, TLS and HTTP/2 through proxies, set up by the files of deploy/proxies."""

import json
import re
import ssl
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from certificates import make_certificate
from ports import free_port
from proxies import caddy, envoy, haproxy, nginx
from roost.server.features.batches.file_routes import MAX_FILE_BYTES
from server_process import ServerProcess, serving, wait_for_line
from shared_programs import TINY

pytestmark = pytest.mark.deploy

CLIENT = "127.0.0.2"
"""Address of the client, which differs from the proxy's."""

LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/completions",
    "body": {"model": "m", "prompt": "x" * 3 * 2**20},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Yields a server that believes whoever connects, as behind a Unix socket."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "config.json").write_text(json.dumps(TINY))
    options = (
        "--simulate",
        "v5e",
        "--forwarded-allow-ips",
        "*",
        "--allow-host",
        "chat.example.org",
        "--store",
        f"sqlite://{folder}/store.db",
    )
    with serving(f"random:{folder / 'config.json'}", *options) as process:
        yield process


@pytest.fixture(params=[1, 3], ids=["one server", "several servers"])
def num_servers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=[nginx, haproxy, caddy, envoy], ids=lambda proxy: proxy.__name__)
def client(
    request: pytest.FixtureRequest, num_servers: int, server: ServerProcess, tmp_path: Path
) -> Iterator[httpx.Client]:
    """Yields a client of a proxy."""
    port = free_port()
    with (
        request.param([server.url.removeprefix("http://")] * num_servers, tmp_path, port),
        httpx.HTTPTransport(local_address=CLIENT) as transport,
        httpx.Client(transport=transport, base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        yield client


def test_a_client_cannot_forge_its_address_and_scheme(client: httpx.Client, server: ServerProcess) -> None:
    """Two lines of one header are a list whose first address a server that trusts all would take."""
    request_id = f"forged-{client.base_url.port}"
    forged = [("x-forwarded-for", "203.0.113.9"), ("x-forwarded-for", "203.0.113.10"), ("x-forwarded-proto", "https")]
    answer = client.get("/docs", headers=[("x-request-id", request_id), *forged])
    assert "<code>http://" in answer.text
    wait_for_line(server, f" {request_id} GET /docs 200 ", seconds=60)
    (logged,) = [line for line in server.log.read_text().splitlines() if request_id in line]
    assert f" client={CLIENT}" in logged


def test_a_page_served_under_a_public_name_may_use_a_server_on_loopback(client: httpx.Client) -> None:
    """The proxies pass the name and the port on, as before a sidecar; without `--allow-host` it is a 403."""
    body = {"prompt": [5], "max_tokens": 1}
    public = f"chat.example.org:{client.base_url.port}"
    statuses = [
        client.post("/v1/completions", json=body, headers={"host": host, "origin": origin}).status_code
        for host, origin in (
            (public, f"http://{public}"),
            (public, "http://chat.example.org:1"),
            ("other.example.org", "http://other.example.org"),
        )
    ]
    assert statuses == [200, 403, 403]


def test_a_file_may_be_larger_than_other_bodies(client: httpx.Client) -> None:
    lines = "".join(json.dumps({**LINE, "custom_id": name}) + "\n" for name in "ab")
    answer = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", lines)})
    assert answer.status_code == 200, answer.text
    assert answer.json()["bytes"] == len(lines) > 4 * 2**20


@pytest.mark.parametrize("client", [nginx, haproxy, envoy], ids=lambda proxy: proxy.__name__, indirect=True)
@pytest.mark.parametrize(
    ("path", "num_bytes", "refusal"),
    [("/v1/files", MAX_FILE_BYTES + 2**16, "multipart/form-data"), ("/v1/states/import", 2**40, "is larger than")],
    ids=["file", "state"],
)
def test_the_server_alone_limits_uploads(client: httpx.Client, path: str, num_bytes: int, refusal: str) -> None:
    """Its refusal arrives before the body is sent; Caddy would read the first 256 KiB of it."""
    with closing(HTTPConnection("127.0.0.1", client.base_url.port, timeout=60)) as connection:
        connection.putrequest("POST", path)
        connection.putheader("content-length", str(num_bytes))
        connection.endheaders()
        assert refusal in json.loads(connection.getresponse().read())["error"]["message"]


@pytest.mark.parametrize("proxy", [nginx, haproxy, caddy], ids=lambda proxy: proxy.__name__)
def test_tls_and_http2_end_at_the_proxy(proxy: Any, server: ServerProcess, tmp_path: Path) -> None:
    """A stream passes, and the server learns the client's scheme and address."""
    certificate = tmp_path / "roost.crt"
    for name, content in zip(("roost.crt", "roost.key"), make_certificate(), strict=True):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "roost.crt.key").symlink_to("roost.key")  # for HAProxy
    port, request_id = free_port(), f"secured-{proxy.__name__}"
    with (
        proxy([server.url.removeprefix("http://")], tmp_path, port, certificate),
        httpx.HTTPTransport(
            local_address=CLIENT, http2=True, verify=ssl.create_default_context(cafile=certificate)
        ) as transport,
        httpx.Client(transport=transport, base_url=f"https://127.0.0.1:{port}", timeout=60) as client,
    ):
        answer = client.get("/docs", headers={"x-request-id": request_id})
        body = {"prompt": [5, 6, 7], "max_tokens": 5, "ignore_eos": True, "stream": True}
        streamed = client.post("/v1/completions", json=body)
    assert (answer.http_version, streamed.http_version) == ("HTTP/2", "HTTP/2")
    assert "<code>https://" in answer.text
    assert streamed.text.endswith("data: [DONE]\n\n")
    wait_for_line(server, f" {request_id} GET /docs 200 ", seconds=60)
    assert re.search(rf" {request_id} .* client={CLIENT}\b", server.log.read_text())
