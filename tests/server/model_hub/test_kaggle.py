"""Kaggle, played by a loopback server that kagglehub is pointed at."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fake_hub import tiny_files
from kagglesdk import kaggle_env
from roost.engine import CheckpointError, open_model
from roost.server.model_hub import find_model, kaggle

TINY_A = Path(__file__).parents[2] / "golden" / "tiny-a"
HANDLE = "google/recurrentgemma/flax/2b-it"


@dataclass
class FakeKaggle:
    """
    Attributes:
      status: of every answer.
      cut: bodies of files end after so many bytes.
      requests: what was called, and what it was sent.
    """

    files: dict[str, bytes]
    status: int = 200
    cut: int | None = None
    requests: list[tuple[str, dict[str, Any], str | None]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    fake: FakeKaggle

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        call = self.path.rpartition("/")[2]
        fake.requests.append((call, body, self.headers.get("Authorization")))
        if fake.status != 200:
            self._send(b"{}", fake.status)
        elif call == "GetModelInstance":
            self._send(json.dumps({"versionNumber": 3}).encode())
        elif call == "ListModelInstanceVersionFiles":
            self._send(json.dumps({"files": [{"name": name} for name in fake.files], "nextPageToken": ""}).encode())
        else:
            self._send(fake.files[body["path"]], kind="application/octet-stream", cut=fake.cut)

    def _send(self, body: bytes, status: int = 200, kind: str = "application/json", cut: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeKaggle]:
    orbax = {f"2b-it/{name}": data for name, data in tiny_files(TINY_A / "orbax").items()}
    fake = FakeKaggle(orbax | {"griffin_config.json": (TINY_A / "griffin_config.json").read_bytes()})

    class Handler(_Handler):
        pass

    Handler.fake = fake
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    monkeypatch.setitem(
        kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, f"http://127.0.0.1:{server.server_port}"
    )
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("KAGGLE_API_TOKEN", "secret")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()


def refusal(handle: str = HANDLE) -> str:
    with pytest.raises(CheckpointError) as error:
        kaggle.fetch(handle)
    text = str(error.value)
    assert text.startswith(f"kaggle:{handle}: ")
    assert "\n" not in text
    return text


def test_a_model_is_downloaded_once_and_served(fake: FakeKaggle) -> None:
    source = find_model(f"kaggle:{HANDLE}")
    assert source.name == "recurrentgemma-2b-it"
    assert source.config == open_model(str(TINY_A / "hf")).config
    assert {key for _, _, key in fake.requests} == {"Bearer secret"}
    fake.requests.clear()
    kaggle.fetch(HANDLE)
    assert [call for call, _, _ in fake.requests] == ["GetModelInstance"], "which version is the newest"
    fake.status = 500
    kaggle.fetch(f"{HANDLE}/3")


ACCEPT = "open https://www.kaggle.com/models/google/recurrentgemma, log in, and accept the licence"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        *((status, f"access is refused ({status}): {ACCEPT}") for status in (401, 403)),
        (404, "check that it is owner/model/framework/variation"),
        (500, "500"),
    ],
)
def test_a_status_is_explained(fake: FakeKaggle, status: int, said: str) -> None:
    fake.status = status
    text = refusal()
    assert said in text
    assert ("set KAGGLE_API_TOKEN" in text) is (status in (401, 403))


def test_what_is_no_handle(fake: FakeKaggle) -> None:
    assert "Invalid model handle" in refusal("google/recurrentgemma")
    assert not fake.requests


def test_what_is_cut_off_is_told_and_gone_on_with(fake: FakeKaggle) -> None:
    fake.cut = 10
    assert "cannot be downloaded (" in (text := refusal())
    assert "start again" in text
    fake.cut = None
    assert open_model(str(kaggle.fetch(HANDLE))).config.width == 64


def test_a_kaggle_that_is_not_there(fake: FakeKaggle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, "http://127.0.0.1:9")
    assert "found without a network if the handle ends with its version" in refusal()


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kagglehub", None)
    assert "in a clone of Roost, pip install '.[kaggle]'" in refusal()
