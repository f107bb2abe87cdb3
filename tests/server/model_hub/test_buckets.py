"""gs:// and s3:// from a bucket on a loopback address."""

import logging
import re
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fake_bucket import FakeBucket, bucket_with, use
from fake_hub import tiny_files
from roost.engine import CheckpointError, open_model
from roost.server.model_hub import buckets, find_model
from roost.server.model_hub.buckets import BucketObject, version_of

TINY_A = Path(__file__).parents[2] / "golden" / "tiny-a"
URL = "gs://models/tiny/2b-it"
FILES = {**tiny_files(TINY_A / "orbax"), "griffin_config.json": (TINY_A / "griffin_config.json").read_bytes()}
BEFORE = "tiny/2b-it/"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBucket]:
    """The golden model's official checkpoint under a path, with its config."""
    monkeypatch.setattr(buckets, "_RETRIES", 0)
    objects = {f"{BEFORE}{name}": data for name, data in FILES.items()}
    with bucket_with({**objects, "tiny/other": b"no part of it", "tiny/2b-it-too/x": b"neither"}) as served:
        use(monkeypatch, served.url)
        yield served


def refusal(cache: Path, url: str = URL) -> str:
    with pytest.raises(CheckpointError) as error:
        buckets.fetch(url, cache)
    text = str(error.value)
    assert text.startswith(f"{url}: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_folder_is_downloaded_once(bucket: FakeBucket, scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}://models/tiny/2b-it"
    folder = buckets.fetch(url, tmp_path)
    assert folder.parent == tmp_path / scheme / "models" / "tiny" / "2b-it"
    assert tiny_files(folder) == FILES
    assert open_model(str(folder)).config == open_model(str(TINY_A / "hf")).config
    count = len(bucket.reads)
    assert buckets.fetch(f"{url}/", tmp_path) == folder
    assert len(bucket.reads) == count


def test_what_has_changed_has_a_folder_of_its_own(bucket: FakeBucket, tmp_path: Path) -> None:
    before = buckets.fetch(URL, tmp_path)
    bucket.objects[f"{BEFORE}griffin_config.json"] = b"{}"
    del bucket.objects[f"{BEFORE}{next(iter(FILES))}"]
    folder = buckets.fetch(URL, tmp_path)
    assert tiny_files(before) == FILES
    assert tiny_files(folder) == {**dict(list(FILES.items())[1:]), "griffin_config.json": b"{}"}


def test_a_path_within_another_one_has_a_folder_of_its_own(bucket: FakeBucket, tmp_path: Path) -> None:
    inner = tiny_files(buckets.fetch(URL, tmp_path))
    assert inner == FILES
    names = {name for name in bucket.objects if name.startswith("tiny/")}
    assert {f"tiny/{name}" for name in tiny_files(buckets.fetch("gs://models/tiny", tmp_path))} == names


def test_objects_that_stand_for_folders_are_left_out(bucket: FakeBucket, tmp_path: Path) -> None:
    folders = {f"{Path(name).parent}/" for name in bucket.objects if Path(name).parent.name != "tiny"}
    bucket.objects |= dict.fromkeys([BEFORE, *folders], b"")
    assert tiny_files(buckets.fetch(URL, tmp_path)) == FILES


def test_a_whole_bucket(bucket: FakeBucket, tmp_path: Path) -> None:
    bucket.objects = {f"{name}": data for name, data in FILES.items()}
    assert tiny_files(buckets.fetch("s3://models", tmp_path)) == FILES


# --- what is cut off, or wrong


def test_what_was_cut_off_goes_on_where_it_stopped(
    bucket: FakeBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "_CHUNK", 10_000)
    bucket.status = lambda _, begin: 503 if begin >= 20_000 else None
    assert "check the name and the network, and start again" in refusal(tmp_path)
    (partial,) = tmp_path.rglob("*.partial/_METADATA")
    assert partial.stat().st_size == 20_000
    bucket.status = lambda *_: None
    bucket.reads.clear()
    assert tiny_files(buckets.fetch(URL, tmp_path)) == FILES
    assert bucket.reads[0][1] == 20_000
    assert not list(tmp_path.rglob("*.partial"))


def test_what_comes_short_is_not_kept(bucket: FakeBucket, tmp_path: Path) -> None:
    bucket.shorten = 1
    assert "start again" in refusal(tmp_path)
    bucket.shorten = 0
    assert tiny_files(buckets.fetch(URL, tmp_path)) == FILES


def test_an_object_that_changes_while_it_is_read_is_not_mixed(bucket: FakeBucket, tmp_path: Path) -> None:
    def change(name: str, _: int) -> None:
        if name:
            bucket.objects[name] = b"another"

    bucket.before = change
    assert "an object has changed (PreconditionError: " in refusal(tmp_path)
    bucket.before = lambda *_: None
    assert b"another" in tiny_files(buckets.fetch(URL, tmp_path)).values()
    assert not list(tmp_path.rglob("*.partial")), "neither what was begun before"


def test_nothing_there(bucket: FakeBucket, tmp_path: Path) -> None:
    assert "there is nothing under this path" in refusal(tmp_path, "gs://models/what")
    assert "access is refused, or an object has changed (" in refusal(tmp_path, "s3://nobody/x")


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(("scheme", "hint"), [("gs", "GOOGLE_APPLICATION_CREDENTIALS"), ("s3", "AWS_ACCESS_KEY_ID")])
def test_no_access(bucket: FakeBucket, tmp_path: Path, status: int, scheme: str, hint: str) -> None:
    url = f"{scheme}://models/tiny/2b-it"
    buckets.fetch(url, tmp_path)
    bucket.status = lambda *_: status
    text = refusal(tmp_path, url)  # though all is here: it may no longer be read
    assert "access is refused, or an object has changed (" in text
    assert hint in text


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), ('{"type": "external_account"}', "unknown variant `external_account`")],
)
def test_credentials_that_cannot_be_used(
    content: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    text = refusal(tmp_path)
    assert "GOOGLE_APPLICATION_CREDENTIALS" in text
    assert said in text
    assert "Debug" not in text


def test_a_missing_library_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert refusal(tmp_path) == f"{URL}: needs one more library; in a clone of Roost, pip install '.[buckets]'"


# --- a bucket out of reach


def test_a_bucket_that_is_down_is_not_needed_by_a_complete_folder(
    bucket: FakeBucket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = buckets.fetch(URL, tmp_path)
    bucket.status = lambda *_: 503
    with caplog.at_level(logging.WARNING, "roost"):
        assert buckets.fetch(URL, tmp_path) == folder
    (warning,) = (each.getMessage() for each in caplog.records if each.levelno == logging.WARNING)
    assert warning.startswith(f"{URL}: GenericError: ")
    assert warning.endswith("is complete here, and is used")
    assert "check the name and the network" in refusal(tmp_path / "other")


def test_a_version_that_is_not_complete_does_not_replace_an_older_one(bucket: FakeBucket, tmp_path: Path) -> None:
    """The bucket is out of reach after the first of two objects that have changed."""
    folder = buckets.fetch(URL, tmp_path)
    first, second = sorted(name for name in bucket.objects if name.startswith(BEFORE))[:2]
    for name in (first, second):
        bucket.objects[name] += b"changed"
    bucket.status = lambda name, _: 503 if name == second else None
    assert buckets.fetch(URL, tmp_path) == folder
    assert tiny_files(folder) == FILES


def test_a_cache_that_is_complete_is_not_written_to(bucket: FakeBucket, tmp_path: Path) -> None:
    """As on a volume that is read-only."""
    buckets.fetch(URL, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    buckets.fetch(URL, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_bucket_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "_RETRIES", 0)
    monkeypatch.setattr(buckets, "_READ_MS", 100)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "check the name and the network, and start again" in refusal(tmp_path)


# --- versions


def test_a_version_is_pinned(bucket: FakeBucket, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "roost"):
        buckets.fetch(URL, tmp_path)
    (version,) = re.findall(r"has the version (#[0-9a-f]{12})", caplog.text)
    lists = bucket.lists
    assert tiny_files(buckets.fetch(f"{URL}{version}", tmp_path)) == FILES
    assert bucket.lists == lists  # what is complete here needs no bucket
    assert tiny_files(buckets.fetch(f"{URL}{version}", tmp_path / "other")) == FILES
    bucket.objects[f"{BEFORE}griffin_config.json"] = b"{}"
    text = refusal(tmp_path / "third", f"{URL}{version}")
    assert re.search("its objects have the version #[0-9a-f]{12} now; restore them, or name this version", text)
    assert version not in text.partition(": ")[2]


def test_a_version_follows_from_names_and_contents() -> None:
    one = BucketObject("a", 1, '"x"')
    others = [BucketObject("b", 1, '"x"'), BucketObject("a", 2, '"x"'), BucketObject("a", 1, '"y"')]
    assert len({version_of([each]) for each in (one, *others)}) == 4
    assert version_of([one, others[0]]) == version_of([others[0], one])


# --- several processes


def test_three_downloads_share_a_folder(bucket: FakeBucket, tmp_path: Path) -> None:
    """All three list the objects at the same time, and one of them reads each object.

    Threads stand for processes: they share nothing but the folder.
    """
    together = threading.Barrier(3)
    bucket.before = lambda name, _: None if name else together.wait(120)
    with ThreadPoolExecutor(3) as threads:
        (folder,) = {*threads.map(lambda cache: buckets.fetch(URL, cache), [tmp_path] * 3)}
    assert tiny_files(folder) == FILES
    assert sorted(bucket.reads) == sorted((f"{BEFORE}{name}", 0) for name, data in FILES.items() if data)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_model_is_served_from_there(bucket: FakeBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: tmp_path)
    source = find_model(URL)
    (folder,) = (tmp_path / "buckets/gs/models/tiny/2b-it").glob("#*")
    assert (source.name, source.weights) == ("2b-it", (folder,))
