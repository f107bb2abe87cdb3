"""HTTPS: a real server with a generated certificate, and clients that verify it."""

import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from certificates import make_certificate
from server_process import ServerProcess, serving

BODY = {"prompt": [5, 6, 7], "max_tokens": 5, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the certificate; its key is in the same folder."""
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    certificate, key = make_certificate()
    path.write_bytes(certificate)
    path.with_name("key.pem").write_bytes(key)
    return path


@pytest.fixture(scope="module")
def trust(certificate: Path) -> ssl.SSLContext:
    """TLS context of a client that trusts only this certificate."""
    return ssl.create_default_context(cafile=certificate)


@pytest.fixture(scope="module")
def secured(tiny_config: Path, certificate: Path) -> Iterator[ServerProcess]:
    files = "--ssl-certfile", str(certificate), "--ssl-keyfile", str(certificate.with_name("key.pem"))
    with serving(f"random:{tiny_config}", "--simulate", "v5e", *files) as server:
        yield server


@pytest.fixture
def client(secured: ServerProcess, trust: ssl.SSLContext) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=secured.url, verify=trust, timeout=60) as client:
        yield client


def test_an_answer_whole_and_streamed(client: httpx.Client) -> None:
    assert client.base_url.scheme == "https"
    whole = client.post("/v1/completions", json=BODY)
    assert whole.status_code == 200, whole.text
    streamed = client.post("/v1/completions", json={**BODY, "stream": True})
    *events, done = [line.removeprefix("data: ") for line in streamed.iter_lines() if line]
    assert done == "[DONE]"
    texts = [json.loads(event)["choices"][0]["text"] for event in events]
    assert "".join(texts) == whole.json()["choices"][0]["text"]


def test_client_that_distrusts_the_certificate_cannot_connect(secured: ServerProcess) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{secured.url}/health", timeout=60)


def test_another_name_of_the_host_is_not_certified(secured: ServerProcess, trust: ssl.SSLContext) -> None:
    with pytest.raises(httpx.ConnectError, match="Hostname mismatch"):
        httpx.get(f"{secured.url.replace('127.0.0.1', 'localhost')}/health", verify=trust, timeout=60)


def test_plain_http_is_refused(secured: ServerProcess, client: httpx.Client) -> None:
    """The connection is closed without a response, before the client times out."""
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        httpx.get(f"{secured.url.replace('https:', 'http:')}/health", timeout=60)
    assert client.get("/health").status_code == 200
