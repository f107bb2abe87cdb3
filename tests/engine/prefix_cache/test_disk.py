"""Tests of the disk tier: a fetch returns what was stored, whatever has happened to the files."""

import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from fake_states import block_states, fetch, format_of, prefill, text
from hypothesis import given, settings
from roost.engine.prefix_cache.cache import PrefixCache, PrefixKey
from roost.engine.prefix_cache.disk import DiskTier
from roost.engine.types.errors import ConfigError
from roost.engine.types.snapshot import BlockState, Snapshot, SnapshotFormat, chunk_snapshots, pack, unpack

PLENTY, WINDOW = 10**9, 128


@contextmanager
def process(folder: Path, budget: int = PLENTY, *, model: str = "m", limit: int = PLENTY, key: bytes | None = None,
            window: int = WINDOW) -> Iterator[tuple[PrefixCache, DiskTier]]:  # fmt: skip
    """Runs a cache with a disk tier; at the end everything is on disk."""
    disk = DiskTier(folder, model, format_of(window), limit, key)
    cache = PrefixCache(window, budget, disk)
    yield cache, disk
    cache.close()


def files(folder: Path, kind: str = "*") -> list[Path]:
    return sorted(folder.glob(f"*/*/*.{kind}"))


@pytest.mark.parametrize("length", [1, 64, 100, 300, 1000])
@pytest.mark.parametrize("window", [16, 100, 128, 500])
def test_cache_survives_a_restart(tmp_path: Path, length: int, window: int) -> None:
    tokens = text((1, length))
    with process(tmp_path, window=window) as (cache, _):
        assert prefill(cache, tokens, window=window) == 0
    with process(tmp_path, window=window) as (cache, disk):
        assert prefill(cache, tokens, window=window) == length
        assert prefill(cache, tokens, window=window) == length
        assert (cache.stats.disk_hits, disk.num_errors) == (1, 0), "the second time it is in memory"
        if length > 64:
            assert prefill(cache, (*tokens, 5, 6), window=window) == length // 64 * 64


PARTS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 64, 200])), min_size=1, max_size=4)


@settings(max_examples=20)
@given(traffic=st.lists(st.tuples(PARTS, st.sampled_from(["", "s"]), st.booleans()), min_size=1, max_size=10))
def test_two_processes_share_a_folder(
    tmp_path_factory: pytest.TempPathFactory, traffic: list[tuple[list[tuple[int, int]], str, bool]]
) -> None:
    """With little memory, no wrong snapshot is ever found, and in the end everything is on disk."""
    folder = tmp_path_factory.mktemp("states")
    with process(folder, 4000) as (one, _), process(folder, 4000) as (other, _):
        for parts, salt, is_one in traffic:
            prefill(one if is_one else other, text(*parts), salt)
    with process(folder) as (cache, disk):
        for parts, salt, _ in traffic:
            assert prefill(cache, text(*parts), salt) == len(text(*parts))
        assert disk.num_errors == 0


def test_names_and_files_hold_no_tokens_and_no_salt(tmp_path: Path) -> None:
    with process(tmp_path) as (cache, _):
        prefill(cache, text((1, 100)), "secret salt")
    key = PrefixKey.of(text((1, 100)), "")
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
def test_damaged_files_are_ignored_and_counted(
    tmp_path: Path, how: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = text((1, 300))
    with process(tmp_path) as (cache, _):
        prefill(cache, tokens)
    for path in files(tmp_path, kind):
        damage(path, how)
    with process(tmp_path) as (cache, disk):
        found = prefill(cache, tokens)
        assert found == {"end": 256, "window": 0, "state": 300}[kind]
        if kind == "state":
            assert prefill(cache, (*tokens[:280], 1, 2)) == 0
        assert disk.num_errors >= 1
        assert cache.stats.disk_errors == disk.num_errors
    assert len(caplog.records) == 1, "told once"
    assert "state cache" in caplog.text
    with process(tmp_path) as (cache, disk):
        assert prefill(cache, tokens) == 300, "what was broken has been written anew"
        assert disk.num_errors == 0


def test_models_have_folders_of_their_own(tmp_path: Path) -> None:
    tokens = text((1, 300))
    with process(tmp_path, model="one") as (cache, _):
        prefill(cache, tokens)
    with process(tmp_path, model="other") as (cache, disk):
        assert (prefill(cache, tokens), disk.num_errors) == (0, 0)


def test_key_accepts_only_files_that_it_signed(tmp_path: Path) -> None:
    tokens = text((1, 300))
    with process(tmp_path) as (cache, _):
        prefill(cache, tokens)
    with process(tmp_path, key=b"sesame") as (cache, disk):
        assert prefill(cache, tokens) == 0
        assert disk.num_errors
    with process(tmp_path, key=b"sesame") as (cache, disk):
        assert (prefill(cache, tokens), disk.num_errors) == (300, 0)


def test_folder_stays_below_its_limit(tmp_path: Path) -> None:
    limit = 200_000
    with process(tmp_path, limit=limit) as (cache, _):
        for kind in range(1, 60):
            prefill(cache, text((kind, 300)))
    assert sum(path.stat().st_size for path in files(tmp_path)) <= limit
    with process(tmp_path, limit=limit) as (cache, _):
        assert prefill(cache, text((59, 300))) == 300, "the newest are there"
        assert prefill(cache, text((1, 300))) == 0


def test_read_only_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = text((1, 300))
    with process(tmp_path) as (cache, _):
        prefill(cache, tokens)
    before = files(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with process(tmp_path) as (cache, _):
        assert prefill(cache, tokens) == 300
        prefill(cache, text((2, 300)))
    assert files(tmp_path) == before


def test_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"state_cache_dir .*/file"):
        DiskTier(tmp_path / "file", "m", format_of(WINDOW), PLENTY)


# --- other processes, and a file system that fails


def test_failed_write_leaves_nothing_and_is_counted(tmp_path: Path) -> None:
    """A folder has the name of the file, so the file cannot be moved there."""
    tokens = text((1, 300))
    with process(tmp_path) as (cache, _):
        prefill(cache, tokens)
    wanted = files(tmp_path)
    for path in wanted:
        path.unlink()
        path.mkdir()
    with process(tmp_path) as (cache, disk):
        assert prefill(cache, tokens) == 0
        cache.close()
        assert disk.num_errors >= len(wanted)
        assert disk.num_bytes == 0
    assert files(tmp_path) == wanted
    assert not list(tmp_path.rglob(".*"))


def test_leftovers_of_crashed_writers_are_evicted(tmp_path: Path) -> None:
    with process(tmp_path, limit=100_000) as (cache, _):
        old = tmp_path / "m" / "ab" / ".new-old"
        old.parent.mkdir(exist_ok=True)
        old.write_bytes(b"x" * 1000)
        os.utime(old, (1e9, 1e9))
        for kind in range(1, 40):
            prefill(cache, text((kind, 300)))
    assert not old.exists()


class Vanishing:
    """Lists a folder as `os.scandir` does, but removes every other file before its `stat`."""

    real: Any = staticmethod(os.scandir)
    num_gone = 0

    def __init__(self, path: str | Path = ".") -> None:
        with Vanishing.real(path) as entries:
            self._entries = list(entries)

    def __enter__(self) -> "Vanishing":
        return self

    def __exit__(self, *_: object) -> None: ...

    def close(self) -> None: ...

    def __iter__(self) -> Iterator["os.DirEntry[str]"]:
        for entry in self._entries:
            if "." in entry.name and int(hashlib.sha256(entry.name.encode()).hexdigest(), 16) % 2:
                Path(entry.path).unlink(missing_ok=True)
                Vanishing.num_gone += 1
            yield entry


def test_files_that_other_processes_remove_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files may vanish after they were listed, at the start and during eviction."""
    for kind in range(1, 8):
        with process(tmp_path) as (cache, _):
            prefill(cache, text((kind, 300)))
    monkeypatch.setattr(Vanishing, "num_gone", 0)
    monkeypatch.setattr(os, "scandir", Vanishing)
    with process(tmp_path, limit=40_000) as (cache, disk):
        assert Vanishing.num_gone
        assert disk.num_bytes == sum(path.stat().st_size for path in files_left(tmp_path))
        at_start = Vanishing.num_gone
        for kind in range(1, 60):
            prefill(cache, text((kind, 300)))
        cache.close()
        assert Vanishing.num_gone > at_start
        assert disk.num_errors == 0


def files_left(folder: Path) -> list[Path]:
    groups = Vanishing.real(folder / "m")
    return [Path(entry.path) for group in groups for entry in Vanishing.real(group.path)]


def test_dangling_link_is_no_file(tmp_path: Path) -> None:
    with process(tmp_path) as (cache, _):
        prefill(cache, text((1, 300)))
    for path in files(tmp_path):
        path.unlink()
        path.symlink_to(tmp_path / "nowhere")
    with process(tmp_path, limit=3000) as (cache, disk):
        assert disk.num_bytes == 0
        for kind in range(1, 10):
            prefill(cache, text((kind, 300)))


def test_folder_that_vanishes_is_created_again(tmp_path: Path) -> None:
    """The disk is emptied while the server runs."""
    with process(tmp_path) as (cache, _):
        prefill(cache, text((1, 300)))
    with process(tmp_path) as (cache, disk):
        (tmp_path / "m").rename(tmp_path / "moved")
        prefill(cache, text((2, 300)))
    assert disk.num_errors == 0
    with process(tmp_path) as (cache, _):
        assert prefill(cache, text((2, 300))) == 300


def test_files_that_cannot_be_removed_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with process(tmp_path) as (cache, _):
        prefill(cache, text((1, 300)))
    kept, real = set(map(str, files(tmp_path))), os.unlink

    def unlink(path: Any, *args: Any, **named: Any) -> None:
        if str(path) in kept:
            raise PermissionError(1, "Operation not permitted")
        real(path, *args, **named)

    monkeypatch.setattr(os, "unlink", unlink)
    with process(tmp_path, limit=100_000) as (cache, disk):
        for kind in range(2, 60):
            prefill(cache, text((kind, 300)))
        cache.close()
        assert disk.num_errors
        assert disk.num_bytes <= 100_000
    assert kept <= set(map(str, files(tmp_path)))
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 100_000


def test_processes_keep_a_shared_folder_below_its_limit(tmp_path: Path) -> None:
    limit = 200_000
    with process(tmp_path, limit=limit) as (one, _), process(tmp_path, limit=limit) as (other, _):
        for kind in range(1, 120):
            prefill(one if kind % 2 else other, text((kind, 300)))
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 1.2 * limit


# --- whose a file is, and what it may hold

RECURRENT = {"h": ((5,), "float32"), "conv": ((2, 5), "float32")}
FLOATS = SnapshotFormat(WINDOW, RECURRENT, ((3,), "float32"), ((4,), "float32"))


def float_states(tokens: tuple[int, ...]) -> list[Snapshot]:
    """Returns snapshots at every block boundary and at the end."""
    full = [np.ones(shape, np.float32) for shape, _ in (*RECURRENT.values(), FLOATS.hidden)]
    lengths = [min(64, len(tokens) - start) for start in range(0, len(tokens), 64)]
    found = [BlockState((full[0], full[1]), np.ones((n, 3), np.float32), None) for n in lengths]
    return chunk_snapshots(None, [*found[:-1], BlockState(found[-1].recurrent, found[-1].window, full[2])], WINDOW)


@contextmanager
def float_disk(folder: Path, key: bytes | None = b"sesame") -> Iterator[DiskTier]:
    disk = DiskTier(folder, "m", FLOATS, PLENTY, key)
    yield disk
    disk.close()


@pytest.mark.parametrize("kind", ["state", "window", "end"])
def test_signed_file_under_another_name_is_rejected(tmp_path: Path, kind: str) -> None:
    """A server with the key wrote all files, so only their metadata tells them apart."""
    a, b = text((1, 300)), text((2, 300))
    with process(tmp_path, key=b"sesame") as (cache, _):
        prefill(cache, a)
    of_a = {path: path.read_bytes() for path in files(tmp_path)}
    with process(tmp_path, key=b"sesame") as (cache, _):
        prefill(cache, b)
    of_b = [path for path in files(tmp_path) if path not in of_a]
    for target in of_b:
        if target.suffix == f".{kind}":
            target.write_bytes(next(data for path, data in of_a.items() if path.suffix == target.suffix))
    with process(tmp_path, key=b"sesame") as (cache, disk):
        assert prefill(cache, b) == {"end": 256, "window": 0, "state": 300}[kind], "and what is found is b's"
        if kind == "state":
            assert prefill(cache, (*b[:280], 1, 2)) == 0
        assert disk.num_errors


def test_signed_file_of_another_kind_or_model_is_rejected(tmp_path: Path) -> None:
    tokens = text((1, 320))
    with process(tmp_path, key=b"sesame", model="one") as (cache, _):
        prefill(cache, tokens)
    (tmp_path / "one").rename(tmp_path / "other")
    with process(tmp_path, key=b"sesame", model="other") as (cache, disk):
        assert prefill(cache, tokens) == 0
        assert disk.num_errors
    for path in files(tmp_path, "state"):
        path.write_bytes(path.with_suffix(".window").read_bytes())
    for path in files(tmp_path, "end"):
        path.unlink()
    with process(tmp_path, key=b"sesame", model="other") as (cache, disk):
        assert prefill(cache, tokens) == 0
        assert disk.num_errors


WRONG = {
    "without h": lambda arrays: {name: array for name, array in arrays.items() if name != "h"},
    "another shape": lambda arrays: arrays | {"h": arrays["h"][:-1]},
    "another type": lambda arrays: arrays | {"h": arrays["h"].astype(np.float16)},
    "not finite": lambda arrays: arrays | {"h": arrays["h"] * np.float32("nan")},
    "infinite": lambda arrays: arrays | {"conv": arrays["conv"] * np.float32("inf")},
    "more than that": lambda arrays: arrays | {"more": arrays["h"]},
    "no array": lambda arrays: {},
}


@pytest.mark.parametrize("how", WRONG)
def test_signed_file_with_other_arrays_counts_as_missing(tmp_path: Path, how: str) -> None:
    tokens = text((1, 300))
    with float_disk(tmp_path) as disk:
        disk.store(PrefixKey.of(tokens, ""), float_states(tokens))
    for path in [*files(tmp_path, "state"), *files(tmp_path, "end")]:
        arrays, facts = unpack(path.read_bytes(), b"sesame")
        path.write_bytes(pack(WRONG[how](arrays), facts, b"sesame"))
    with float_disk(tmp_path) as disk:
        assert disk.find(PrefixKey.of(tokens, ""), 0) is None
        assert disk.num_errors == 5
        assert not files(tmp_path, "state"), "and removed"


def test_pipes_and_huge_files_do_not_block_a_reader(tmp_path: Path) -> None:
    """A pipe would wait for a writer forever; a huge file would take all memory."""
    tokens = text((1, 300))
    with process(tmp_path) as (cache, _):
        prefill(cache, tokens)
    wanted = files(tmp_path)
    for index, path in enumerate(wanted):
        path.unlink()
        match index % 3:
            case 0:
                os.mkfifo(path)
            case 1:
                path.mkdir()
            case 2:
                with path.open("wb") as file:
                    file.truncate(2**40)
    with process(tmp_path) as (cache, disk):
        assert prefill(cache, tokens) == 0
        assert disk.num_errors


def test_salt_may_be_any_string(tmp_path: Path) -> None:
    """JSON has strings that are not valid UTF-8."""
    for salt in ("\ud800", "\0", "/", "../..", "m/"):
        with process(tmp_path) as (cache, _):
            assert prefill(cache, text((1, 100)), salt) == 0
        with process(tmp_path) as (cache, disk):
            assert prefill(cache, text((1, 100)), salt) == 100
            assert disk.num_errors == 0


# --- how much is done

LONG = text((1, 200_000))

_opened: list[str] = []
_is_counting = threading.Event()


def _count_open(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and _is_counting.is_set():
        _opened.append(str(args[0]))


sys.addaudithook(_count_open)


@contextmanager
def counting_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yields the paths of all files that are opened or whose `stat` is read."""
    real = os.stat

    def counted(path: Any, *args: Any, **named: Any) -> os.stat_result:
        if _is_counting.is_set():
            _opened.append(str(path))
        return real(path, *args, **named)

    monkeypatch.setattr(os, "stat", counted)
    _opened.clear()
    _is_counting.set()
    yield _opened
    _is_counting.clear()


def test_miss_of_a_long_prompt_reads_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with float_disk(tmp_path) as disk, counting_files(monkeypatch) as seen:
        assert disk.find(PrefixKey.of(LONG, ""), 0) is None
        assert 0 < len([path for path in seen if str(tmp_path) in path]) <= 200


@pytest.mark.parametrize("known", [64, 64 * 64, 64 * 65, 64 * 128, 100_000 // 64 * 64, 199_936])
def test_hit_at_the_last_boundary_reads_few_files(tmp_path: Path, known: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same holds if earlier snapshots were evicted, apart from the blocks of its window."""
    key, block = PrefixKey.of(LONG, ""), known // 64
    with float_disk(tmp_path) as disk:
        disk.store(key, float_states(LONG)[max(0, block - 4) : block])
    with float_disk(tmp_path) as disk, counting_files(monkeypatch) as seen:
        found = disk.find(key, 0)
        assert found is not None
        assert (found.length, sum(map(len, found.window))) == (known, min(known, WINDOW))
        assert len([path for path in seen if str(tmp_path) in path]) <= 250


def test_late_snapshots_are_found_after_earlier_ones_were_evicted(tmp_path: Path) -> None:
    tokens, limit = text((1, 64 * 200 + 1)), 120_000
    states = float_states(tokens)
    disk = DiskTier(tmp_path, "m", FLOATS, limit)
    for start in range(0, 200, 8):
        disk.store(PrefixKey.of(tokens, ""), states[start : start + 8])
    disk.close()
    assert len(files(tmp_path, "state")) < 100
    disk = DiskTier(tmp_path, "m", FLOATS, limit)
    found = disk.find(PrefixKey.of((*tokens[:-1], 8), ""), 0)
    assert found is not None
    assert found.length == 64 * 200
    disk.close()


def test_prompt_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of chunks and of searches does not matter."""
    blocks, num_hashed, real = 256, [0], hashlib.sha256

    def counted(data: bytes = b"") -> Any:
        num_hashed[0] += len(data) == 32 + 256
        return real(data)

    monkeypatch.setattr(hashlib, "sha256", counted)
    tokens = text((1, 64 * blocks + 10))
    key, last = PrefixKey.of(tokens, ""), None
    with process(tmp_path) as (cache, _):
        assert fetch(cache, key) is None
        for start in range(0, 64 * blocks, 256):
            last = cache.insert_chunk(key, last, block_states(tokens, start, start + 256))
    assert num_hashed[0] <= blocks + 1


def test_pending_writes_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is too slow loses snapshots, which is logged; it does not fill memory."""
    gate, num_written = threading.Event(), [0]

    def slow(*args: Any) -> bytes:
        assert gate.wait(60)
        num_written[0] += 1
        return pack(*args)

    monkeypatch.setattr("roost.engine.prefix_cache.disk.pack", slow)
    monkeypatch.setattr("roost.engine.prefix_cache.disk._MAX_WRITE_BYTES", 50_000)
    with process(tmp_path) as (cache, disk):
        for kind in range(1, 101):
            prefill(cache, text((kind, 64)))
        assert disk.num_errors > 50
        gate.set()
    assert num_written[0] * 400 < 50_000
