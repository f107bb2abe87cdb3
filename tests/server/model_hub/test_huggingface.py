"""Hugging Face's hub, played by a loopback server: what is downloaded, what is not again, and every way to fail."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import COMMIT, GATED, NO_REPO, REPO, FakeHub, Reply, hub_with, tiny_files
from huggingface_hub import HfApi, constants
from roost.engine import CheckpointError, open_model
from roost.server.model_hub import find_model, huggingface

TINY_A = Path(__file__).parents[2] / "golden" / "tiny-a"
BAD_TOKEN = {"X-Error-Message": "Invalid credentials in Authorization header"}
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    unwanted = {"model.pt": b"", "README.md": b"#", "pytorch_model.bin": b"", "original/model.safetensors": b""}
    with hub_with(tiny_files(TINY_A / "hf") | unwanted) as hub:
        yield hub


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No token of the user's, no pause before the library tries again, no bars, and its cut offs are not for us."""
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def fetch(hub: FakeHub, cache: Path, revision: str | None = None, token: str | bool = False) -> Path:
    return huggingface.fetch(REPO, revision, HfApi(endpoint=hub.url, token=token), cache)


def refusal(hub: FakeHub, cache: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as error:
        fetch(hub, cache, **options)
    text = str(error.value)
    assert text.startswith(f"{REPO}: ")
    assert "\n" not in text
    return text


def test_a_repository_is_downloaded_once(hub: FakeHub, tmp_path: Path) -> None:
    folder = fetch(hub, tmp_path)
    assert open_model(str(folder)).config == open_model(str(TINY_A / "hf")).config
    assert not {"model.pt", "README.md", "pytorch_model.bin", "original"} & {p.name for p in folder.iterdir()}
    before = len(hub.paths("GET"))
    assert fetch(hub, tmp_path) == folder
    assert not [path for path in hub.paths("GET")[before:] if "/resolve/" in path]


def test_the_token_is_sent(hub: FakeHub, tmp_path: Path) -> None:
    fetch(hub, tmp_path, token="hf_secret")
    assert all(headers["authorization"] == "Bearer hf_secret" for _, _, headers in hub.requests)


def test_official_checkpoints_come_with_their_folders(tmp_path: Path) -> None:
    files = {f"tiny/{name}": data for name, data in tiny_files(TINY_A / "orbax").items()}
    with hub_with(files | {"griffin_config.json": (TINY_A / "griffin_config.json").read_bytes()}) as hub:
        source = open_model(str(fetch(hub, tmp_path)))
    assert source.config == open_model(str(TINY_A / "hf")).config


def test_a_commit_is_a_revision(hub: FakeHub, tmp_path: Path) -> None:
    assert fetch(hub, tmp_path, COMMIT).name == COMMIT


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a small file be written in several pieces."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)


def ranges(hub: FakeHub) -> list[str]:
    """Returns the byte ranges that were requested."""
    return [headers["range"] for method, _, headers in hub.requests if method == "GET" and "range" in headers]


@pytest.mark.usefixtures("small_chunks")
def test_what_is_cut_off_goes_on_where_it_stopped(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut = 150_000
    hub.files = {SHARD: hub.files[SHARD]}
    folder = fetch(hub, tmp_path)  # every attempt gets some of it
    assert ranges(hub) == ["bytes=150000-", "bytes=300000-"]
    assert (folder / SHARD).read_bytes() == hub.files[SHARD]


def test_the_next_start_keeps_the_files_that_are_whole(hub: FakeHub, tmp_path: Path) -> None:
    hub.failing = lambda path: Reply(500) if path.endswith(SHARD) else None
    assert "500" in refusal(hub, tmp_path)
    hub.requests, hub.failing = [], lambda path: None
    fetch(hub, tmp_path)
    assert [path for path in hub.paths("GET") if "/resolve/" in path] == [f"/{REPO}/resolve/{COMMIT}/{SHARD}"]


def test_a_download_that_dies_is_told(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut = 0
    assert "start again: finished downloads are kept" in refusal(hub, tmp_path)
    hub.cut = None
    fetch(hub, tmp_path)


def test_the_cache_will_do_without_a_network(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(hub, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(hub, tmp_path) == folder
    text = refusal(hub, tmp_path / "other")
    assert "OfflineModeIsEnabled" in text
    assert "check the network, HF_TOKEN and HF_HUB_OFFLINE" in text


def test_half_a_cache_is_not_enough(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fetch(hub, tmp_path) / SHARD).unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "cannot be downloaded (" in refusal(hub, tmp_path)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("where", ["/api/", "/resolve/"])
def test_a_licence_that_is_not_accepted_says_what_to_click(
    hub: FakeHub, tmp_path: Path, status: int, where: str
) -> None:
    """The hub may tell at once, or with the first file."""
    hub.failing = lambda path: Reply(status, GATED) if where in path else None
    text = refusal(hub, tmp_path)
    assert f"open {hub.url}/{REPO}, log in, and click on the agreement, then make a token" in text
    assert f"{hub.url}/settings/tokens and set HF_TOKEN to it" in text


@pytest.mark.parametrize(
    ("reply", "options", "message"),
    [
        (Reply(401, BAD_TOKEN), {"token": "hf_x"}, "check the network, HF_TOKEN"),
        (Reply(403), {"token": "hf_x"}, "403"),
        (Reply(401, NO_REPO), {}, "that may be read; check the name, or set HF_TOKEN"),  # to who is not logged in
        (Reply(404, NO_REPO), {}, "that may be read; check the name, or set HF_TOKEN"),
        (None, {"revision": "v9"}, "has no revision 'v9'"),
        (Reply(503), {}, "503"),
    ],
)
def test_a_refusal_says_what_to_do(
    hub: FakeHub, tmp_path: Path, reply: Reply | None, options: dict[str, str], message: str
) -> None:
    hub.failing = lambda path: reply
    assert message in refusal(hub, tmp_path, **options)


def test_a_hub_that_does_not_answer(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.wait = threading.Event()
    monkeypatch.setattr(huggingface, "_TIMEOUT_S", 0.1)
    text = refusal(hub, tmp_path)
    assert "Timeout" in text
    assert "check the network, HF_TOKEN and HF_HUB_OFFLINE, and start again" in text


def test_a_hub_that_is_not_there(tmp_path: Path) -> None:
    with hub_with({}) as gone:
        pass
    assert "check the network, HF_TOKEN and HF_HUB_OFFLINE, and start again" in refusal(gone, tmp_path)


def test_only_what_is_not_here_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, str | None]] = []

    def fake(repo: str, revision: str | None) -> Path:
        asked.append((repo, revision))
        return TINY_A / "hf"

    monkeypatch.setattr(huggingface, "fetch", fake)
    (tmp_path / "golden").symlink_to(TINY_A)
    monkeypatch.chdir(tmp_path)
    assert find_model("golden/hf").name == "hf"
    assert find_model("google/recurrentgemma-2b-it").name == "recurrentgemma-2b-it"
    assert find_model("google/recurrentgemma-2b@refs/pr/3").name == "recurrentgemma-2b"
    assert asked == [("google/recurrentgemma-2b-it", None), ("google/recurrentgemma-2b", "refs/pr/3")]
    for reference in ("no-such-model", "/no/such/model", "a/b/c"):
        with pytest.raises(CheckpointError, match="no such directory"):
            find_model(reference)
