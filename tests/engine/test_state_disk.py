"""States on disk: what is found is what was stored, whatever has happened to the files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from fake_states import check, marks, read, text
from hypothesis import given, settings
from roost.engine.errors import ConfigError, StateFileError
from roost.engine.snapshot import follow
from roost.engine.state_cache import PromptKey, StateCache
from roost.engine.state_disk import StateDisk
from roost.engine.state_file import pack, unpack

PLENTY, WINDOW = 10**9, 128


@contextmanager
def process(folder: Path, budget: int = PLENTY, *, model: str = "m", limit: int = PLENTY, key: bytes | None = None,
            window: int = WINDOW) -> Iterator[tuple[StateCache, StateDisk]]:  # fmt: skip
    """A cache from its start to its end; at the end all is on disk."""
    disk = StateDisk(folder, model, window, limit, key)
    cache = StateCache(window, budget, disk)
    yield cache, disk
    cache.close()


def files(folder: Path, kind: str = "*") -> list[Path]:
    return sorted(folder.glob(f"*/*/*.{kind}"))


@pytest.mark.parametrize("length", [1, 64, 100, 300, 1000])
@pytest.mark.parametrize("window", [16, 100, 128, 500])
def test_a_restart_keeps_what_was_read(tmp_path: Path, length: int, window: int) -> None:
    tokens = text((1, length))
    with process(tmp_path, window=window) as (cache, _):
        assert read(cache, tokens, window=window) == 0
    with process(tmp_path, window=window) as (cache, disk):
        assert read(cache, tokens, window=window) == length
        assert read(cache, tokens, window=window) == length
        assert (cache.stats.disk_hits, disk.num_errors) == (1, 0), "the second time it is in memory"
        if length > 64:
            assert read(cache, (*tokens, 5, 6), window=window) == length // 64 * 64


PARTS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 64, 200])), min_size=1, max_size=4)


@settings(max_examples=20)
@given(traffic=st.lists(st.tuples(PARTS, st.sampled_from(["", "s"]), st.booleans()), min_size=1, max_size=10))
def test_two_processes_that_share_a_folder(
    tmp_path_factory: pytest.TempPathFactory, traffic: list[tuple[list[tuple[int, int]], str, bool]]
) -> None:
    """With little memory; nothing wrong is ever found, and in the end everything is on disk."""
    folder = tmp_path_factory.mktemp("states")
    with process(folder, 4000) as (one, _), process(folder, 4000) as (other, _):
        for parts, salt, is_one in traffic:
            read(one if is_one else other, text(*parts), salt)
    with process(folder) as (cache, disk):
        for parts, salt, _ in traffic:
            assert read(cache, text(*parts), salt) == len(text(*parts))
        assert disk.num_errors == 0


def test_names_and_files_hold_no_tokens_and_no_salt(tmp_path: Path) -> None:
    with process(tmp_path) as (cache, _):
        read(cache, text((1, 100)), "secret salt")
    key = PromptKey.of(text((1, 100)), "")
    for path in files(tmp_path):
        assert "secret" not in str(path)
        assert key.block(0)[:16] not in path.read_bytes()


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    match how:
        case "truncated":
            path.write_bytes(data[: len(data) // 2])
        case "empty":
            path.write_bytes(b"")
        case "tampered":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "garbage":
            path.write_bytes(os.urandom(len(data)))
        case "another's":
            path.write_bytes(pack({"h": np.zeros(3, np.float32)}, {}))


@pytest.mark.parametrize("how", ["truncated", "empty", "tampered", "garbage"])
@pytest.mark.parametrize("kind", ["state", "window", "end"])
def test_damage_is_seen_ignored_and_told(tmp_path: Path, how: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    tokens = text((1, 300))
    with process(tmp_path) as (cache, _):
        read(cache, tokens)
    for path in files(tmp_path, kind):
        damage(path, how)
    with process(tmp_path) as (cache, disk):
        found = read(cache, tokens)
        assert found == {"end": 256, "window": 0, "state": 300}[kind]
        if kind == "state":
            assert read(cache, (*tokens[:280], 1, 2)) == 0
        assert disk.num_errors >= 1
        assert cache.stats.disk_errors == disk.num_errors
    assert len(caplog.records) == 1, "told once"
    assert "state cache" in caplog.text
    with process(tmp_path) as (cache, disk):
        assert read(cache, tokens) == 300, "what was broken has been written anew"
        assert disk.num_errors == 0


def test_models_do_not_see_each_other(tmp_path: Path) -> None:
    tokens = text((1, 300))
    with process(tmp_path, model="one") as (cache, _):
        read(cache, tokens)
    with process(tmp_path, model="other") as (cache, disk):
        assert (read(cache, tokens), disk.num_errors) == (0, 0)


def test_a_key_takes_only_what_it_has_signed(tmp_path: Path) -> None:
    tokens = text((1, 300))
    with process(tmp_path) as (cache, _):
        read(cache, tokens)
    with process(tmp_path, key=b"sesame") as (cache, disk):
        assert read(cache, tokens) == 0
        assert disk.num_errors
    with process(tmp_path, key=b"sesame") as (cache, disk):
        assert (read(cache, tokens), disk.num_errors) == (300, 0)


def test_the_folder_stays_below_its_limit(tmp_path: Path) -> None:
    limit = 200_000
    with process(tmp_path, limit=limit) as (cache, _):
        for kind in range(1, 60):
            read(cache, text((kind, 300)))
    assert sum(path.stat().st_size for path in files(tmp_path)) <= limit
    with process(tmp_path, limit=limit) as (cache, _):
        assert read(cache, text((59, 300))) == 300, "the newest are there"
        assert read(cache, text((1, 300))) == 0


def test_a_folder_that_cannot_be_written_to_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = text((1, 300))
    with process(tmp_path) as (cache, _):
        read(cache, tokens)
    before = files(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with process(tmp_path) as (cache, _):
        assert read(cache, tokens) == 300
        read(cache, text((2, 300)))
    assert files(tmp_path) == before


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"state_cache_dir .*/file"):
        StateDisk(tmp_path / "file", "m", WINDOW, PLENTY)


def test_no_half_file_is_left_behind(tmp_path: Path) -> None:
    with process(tmp_path) as (cache, _):
        read(cache, text((1, 300)))
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_a_file_is_what_was_packed() -> None:
    (snapshot,) = follow(None, marks(text((1, 64))), WINDOW)
    arrays = {"h": snapshot.recurrent[0], "window": snapshot.window[0]}
    found, facts = unpack(pack(arrays, {"model": "m"}, b"key"), b"key")
    assert facts["model"] == "m"
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    check(snapshot, text((1, 64)), WINDOW)


@pytest.mark.parametrize(
    ("data", "key", "message"),
    [
        (b"", None, "no whole state file"),
        (b"\x08\0\0\0\0\0\0\0{}      ", None, "no whole state file"),
        (pack({}, {}), b"key", "is not signed"),
        (pack({}, {}, b"other"), b"key", "another key"),
        (pack({}, {}).replace(b"roost-state-1", b"roost-state-9"), None, "has the format 'roost-state-9'"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, key: bytes | None, message: str) -> None:
    with pytest.raises(StateFileError, match=message):
        unpack(data, key)
