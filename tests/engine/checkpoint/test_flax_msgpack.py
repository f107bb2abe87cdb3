"""A msgpack file of the official library holds the tensors that its Orbax checkpoint holds; broken files are named."""

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.engine.checkpoint.conversion import convert
from roost.engine.checkpoint.flax_msgpack import MsgpackError, read_arrays
from roost.engine.checkpoint.official import open_arrays
from roost.engine.checkpoint.source import ModelSource, open_model, open_tensors
from roost.engine.types.errors import CheckpointError
from small_models import TINY_A

ORBAX = TINY_A / "orbax"


def tree() -> dict[str, Any]:
    """Returns the parameters as the official library nests them."""
    found: dict[str, Any] = {}
    for key, array in open_arrays(ORBAX).items():
        *path, name = key.replace("blocks.", "blocks:").split(".")
        place = found
        for part in path:
            place = place.setdefault(part.replace("blocks:", "blocks."), {})
        place[name] = array.read().result()
    return found


def folder(path: Path, content: bytes) -> Path:
    path.mkdir()
    (path / "model.msgpack").write_bytes(content)
    shutil.copy(TINY_A / "griffin_config.json", path)
    return path


def tensors_of(source: ModelSource) -> dict[str, np.ndarray]:
    with open_tensors(source.weights, source.config) as tensors:
        return {name: tensor.whole() for name, tensor in tensors.items()}


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("chunk", [2**30, 1000])
def test_tensors_are_those_of_the_orbax_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: bool, chunk: int
) -> None:
    """Also with the parameters below a root, and with arrays that Flax has split."""
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", chunk)
    params = {"params": tree()} if root else tree()
    source = open_model(str(folder(tmp_path / "it", flax.serialization.msgpack_serialize(params))))
    expected = open_model(str(ORBAX))
    assert source.config == expected.config
    found, others = tensors_of(source), tensors_of(expected)
    assert found.keys() == others.keys()
    for name, tensor in others.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)


def test_it_is_converted_like_any_other(tmp_path: Path) -> None:
    source = open_model(str(folder(tmp_path / "it", flax.serialization.msgpack_serialize(tree()))))
    assert convert(source, tmp_path / "hf") == convert(open_model(str(ORBAX)), tmp_path / "other")


@pytest.fixture(scope="module")
def small() -> bytes:
    arrays = {"a": {"b": np.ones((2, 3), np.float32)}, "c": np.zeros(300, np.int8)}
    return flax.serialization.msgpack_serialize(arrays)


def test_every_truncated_file_is_refused(small: bytes) -> None:
    assert {name: array.shape for name, array in read_arrays(small).items()} == {"a.b": (2, 3), "c": (300,)}
    for stop in range(len(small)):
        with pytest.raises(MsgpackError):
            read_arrays(small[:stop])
    with pytest.raises(MsgpackError, match="1 bytes follow its end"):
        read_arrays(small + b"\0")


@given(st.data())
def test_changed_bytes_are_read_or_refused(small: bytes, data: st.DataObject) -> None:
    changed = bytearray(small)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, 60) | st.integers(0, len(small) - 1))] = data.draw(st.integers(0, 255))
    try:
        arrays = read_arrays(bytes(changed))
    except MsgpackError:
        return
    assert sum(array.num_bytes for array in arrays.values()) <= len(small)


HOSTILE = {
    "a gibibyte that is not there": b"\x81\xa1a\xc9" + struct.pack(">I", 2**30) + b"\x01",
    "a million items": b"\xdf" + struct.pack(">I", 10**6),
    "nesting without end": b"\x81\xa1a" * 5000,
    "a long key": b"\x81\xdb" + struct.pack(">I", 10**6) + b"a" * 10**6 + b"\x00",
    "a number": b"\x81\xa1a\x07",
    "another extension": b"\x81\xa1a\xd4\x02\x00",
    "nothing": b"",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"model.msgpack: is no whole Flax checkpoint: [^\n]*$"):
        open_model(str(folder(tmp_path / "it", content)))


def changed_trees() -> Iterator[tuple[str, Any, str]]:
    key = "embedder.input_embedding"
    yield "dtype", {"embedder": {"input_embedding": np.ones((4, 4), np.int32)}}, f"array {key} is of type int32"
    yield "objects", {"embedder": {"input_embedding": {"x": "text"}}}, f"{key}.x is no array of numbers"
    yield "foreign", {"wte": np.ones((4, 4), np.float32)}, f"it has no array {key}"


@pytest.mark.parametrize(("params", "message"), [case[1:] for case in changed_trees()])
def test_other_trees_are_refused_by_the_name_of_an_array(tmp_path: Path, params: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_model(str(folder(tmp_path / "it", flax.serialization.msgpack_serialize(params))))


def test_bytes_that_are_not_the_shapes_are_refused(tmp_path: Path) -> None:
    content = flax.serialization.msgpack_serialize({"embedder": {"input_embedding": np.ones((4, 4), np.float32)}})
    assert content.count(b"\x92\x04\x04") == 1
    with pytest.raises(CheckpointError, match=r"has 64 bytes, which are not \[4, 5\] numbers of type float32"):
        open_model(str(folder(tmp_path / "it", content.replace(b"\x92\x04\x04", b"\x92\x04\x05"))))
