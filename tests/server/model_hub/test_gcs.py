"""gs:// from an emulator of the storage on a loopback address."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from fake_hub import tiny_files
from gcp_storage_emulator.server import create_server
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from roost.engine import CheckpointError, open_model
from roost.server.model_hub import find_model, gcs

TINY_A = Path(__file__).parents[2] / "golden" / "tiny-a"
URL = "gs://models/tiny/2b-it"


@pytest.fixture(scope="module")
def emulator() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def bucket(emulator: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Storage with the golden model's official checkpoint under a path, and its config beside it."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "test")
    monkeypatch.setattr(gcs, "_TIMEOUT_S", 2.0)
    requests.get(f"{emulator}/wipe", timeout=10)
    client = storage.Client(credentials=AnonymousCredentials(), project="test")
    bucket = client.create_bucket("models")
    for name, data in tiny_files(TINY_A / "orbax").items():
        bucket.blob(f"tiny/2b-it/{name}").upload_from_string(data)
    bucket.blob("tiny/2b-it/griffin_config.json").upload_from_filename(TINY_A / "griffin_config.json")
    bucket.blob("tiny/other").upload_from_string("no part of it")
    return bucket


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Object and first byte of every download."""
    calls: list[tuple[str, int]] = []
    original = storage.Blob.download_as_bytes

    def download(blob: Any, *, start: int, **options: Any) -> bytes:
        calls.append((blob.name, start))
        data: bytes = original(blob, start=start, **options)
        return data

    monkeypatch.setattr(storage.Blob, "download_as_bytes", download)
    return calls


def refusal(cache: Path, url: str = URL) -> str:
    with pytest.raises(CheckpointError) as error:
        gcs.fetch(url, cache)
    text = str(error.value)
    assert text.startswith(f"{url}: ")
    assert "\n" not in text
    return text


@pytest.mark.usefixtures("bucket")
def test_a_folder_is_downloaded_once(tmp_path: Path, downloads: list[tuple[str, int]]) -> None:
    folder = gcs.fetch(URL, tmp_path)
    assert folder == tmp_path / "models" / "tiny" / "2b-it"
    assert open_model(str(folder)).config == open_model(str(TINY_A / "hf")).config
    assert tiny_files(folder).keys() == tiny_files(TINY_A / "orbax").keys() | {"griffin_config.json"}
    count = len(downloads)
    assert gcs.fetch(f"{URL}/", tmp_path) == folder
    assert len(downloads) == count


def test_what_has_changed_is_downloaded_again(bucket: Any, tmp_path: Path, downloads: list[tuple[str, int]]) -> None:
    gcs.fetch(URL, tmp_path)
    downloads.clear()
    bucket.blob("tiny/2b-it/griffin_config.json").upload_from_string("{}")
    folder = gcs.fetch(URL, tmp_path)
    assert downloads == [("tiny/2b-it/griffin_config.json", 0)]
    assert (folder / "griffin_config.json").read_text() == "{}"


@pytest.mark.usefixtures("bucket")
def test_what_was_cut_off_goes_on_where_it_stopped(
    tmp_path: Path, downloads: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs, "_CHUNK", 100_000)
    counted = storage.Blob.download_as_bytes

    def die(blob: Any, *, start: int, **options: Any) -> bytes:
        if start >= 200_000:
            raise requests.ConnectionError("cut off")
        data: bytes = counted(blob, start=start, **options)
        return data

    with monkeypatch.context() as patch:
        patch.setattr(storage.Blob, "download_as_bytes", die)
        assert "(ConnectionError: cut off); check the network and start again" in refusal(tmp_path)
    downloads.clear()
    folder = gcs.fetch(URL, tmp_path)
    assert downloads[0][1] == 200_000
    assert tiny_files(folder).items() >= tiny_files(TINY_A / "orbax").items()


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: data[:-1] + b"?"])
def test_what_comes_short_or_wrong_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any) -> None:
    original = storage.Blob.download_as_bytes
    with monkeypatch.context() as patch:
        patch.setattr(storage.Blob, "download_as_bytes", lambda blob, **options: spoil(original(blob, **options)))
        text = refusal(tmp_path)
        assert "were requested" in text or "do not match the checksum" in text
    assert tiny_files(gcs.fetch(URL, tmp_path)).items() >= tiny_files(TINY_A / "orbax").items()


@pytest.mark.usefixtures("bucket")
def test_nothing_there() -> None:
    for url, expected in (
        ("gs://models/what", "there is nothing under this path"),
        ("gs://nobody", "no bucket nobody"),
    ):
        assert expected in refusal(Path("unused"), url)


@pytest.mark.parametrize("status", [401, 403])
def test_no_access(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    answer_with(monkeypatch, status)
    text = refusal(tmp_path)
    assert (
        f"access is refused ({status}): log in with gcloud auth application-default login, or set GOOGLE_APPL" in text
    )


def test_a_storage_that_is_down(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "_TIMEOUT_S", 0.1)
    answer_with(monkeypatch, 503)
    assert "check the network and start again" in refusal(tmp_path)


def test_a_storage_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(gcs, "_TIMEOUT_S", 0.1)
        assert "check the network and start again" in refusal(tmp_path)


def answer_with(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """Every request to the storage gets this status."""

    def send(session: requests.Session, request: requests.PreparedRequest, **_: Any) -> requests.Response:
        response = requests.Response()
        response.status_code, response.request, response.url = status, request, request.url or ""
        response._content = b"{}"
        return response

    monkeypatch.setattr(requests.Session, "send", send)


@pytest.mark.usefixtures("bucket")
def test_a_model_is_served_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: tmp_path)
    source = find_model(URL)
    assert (source.name, source.weights) == ("2b-it", (tmp_path / "gcs" / "models" / "tiny" / "2b-it",))
