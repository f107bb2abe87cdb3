"""Files of states are those that Roost 0.1.0 wrote, so that it reads ours and we read its.

They are the same byte for byte, but for the order of the metadata, which safetensors draws anew for each file.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from roost.engine import RequestSnapshot, RequestSnapshotFormat, SavedStateFormat, Snapshot
from roost.engine.devices.platform import PORTABLE
from roost.engine.model.config import ModelConfig
from roost.engine.prefix_cache.cache import PrefixKey
from roost.engine.prefix_cache.disk import DiskTier
from roost.engine.types.config import EngineConfig
from roost.engine.worker.served import Devices, Served
from unpacked_states import saved_state

MODEL = ModelConfig(64, 8, 8, 1, 6, ("recurrent", "attention", "recurrent"), window=128)
TOKENS = tuple(range(64))
FORMATS = ["float32", "bfloat16", "int8"]
"""Dtype of the window; other arrays are bfloat16 where it is int8."""


def format_in(window: str) -> SavedStateFormat:
    config = replace(MODEL, kv_dtype="int8") if window == "int8" else MODEL
    dtype = jnp.dtype("bfloat16" if window == "int8" else window)
    return Served(config, EngineConfig(), Devices(PORTABLE), dtype).state_format("model")


def snapshot_in(window: str) -> Snapshot:
    """Returns a snapshot after 64 tokens."""
    dtype = jnp.dtype("bfloat16" if window == "int8" else window)

    def array(*shape: int) -> np.ndarray:
        return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)

    token = array(64, 1, 2, 8).astype(dtype)
    if window == "int8":
        token = (array(64, 1, 2, 12) % 64).astype(np.int8)
    return Snapshot(64, (array(2, 6), array(2, 3, 6).astype(dtype)), (token,), array(8).astype(dtype))


def digest(*files: bytes) -> str:
    """Returns a digest of files, with their headers' fields in order."""
    whole = hashlib.sha256()
    for file in files:
        size = int.from_bytes(file[:8], "little")
        whole.update(json.dumps(json.loads(file[8 : 8 + size]), sort_keys=True).encode() + file[8 + size :])
    return whole.hexdigest()[:16]


STATES = {"float32": "2c1e91b896e6a3f8", "bfloat16": "ea7fa7dbaf1e6f9c", "int8": "f3a0899ac7b0ebb0"}


@pytest.mark.parametrize("window", FORMATS)
def test_saved_states(window: str) -> None:
    kind, snapshot = format_in(window), snapshot_in(window)
    file = kind.export(saved_state(TOKENS, snapshot), b"key")
    assert digest(file) == STATES[window]
    loaded = kind.load(file, b"key").snapshot
    assert loaded is not None
    for found, wanted in zip(loaded.recurrent, snapshot.recurrent, strict=True):
        np.testing.assert_array_equal(found, wanted)


CHECKPOINTS = {"float32": "68e330c0989f2ccf", "bfloat16": "b3a13470c390e8c3", "int8": "34f63ff02071dd07"}


@pytest.mark.parametrize("window", FORMATS)
def test_checkpoints(window: str) -> None:
    kind = RequestSnapshotFormat("engine", format_in(window).snapshot)
    file = kind.export(RequestSnapshot(3, snapshot_in(window)), "name", b"key")
    assert digest(file) == CHECKPOINTS[window]
    assert kind.load(file, "name", b"key").snapshot.length == 64


CACHES = {"float32": "136fb4f2e90825c4", "bfloat16": "71c80460739ec76b", "int8": "a1b265fc8153a087"}


@pytest.mark.parametrize("window", FORMATS)
def test_files_of_the_prefix_cache(window: str, tmp_path: Path) -> None:
    key, snapshot = PrefixKey.of(TOKENS, "salt"), snapshot_in(window)
    tier = DiskTier(tmp_path, "model", format_in(window).snapshot, 10**6, b"key")
    tier.store(key, [snapshot])
    tier.close()
    files = sorted(path for path in (tmp_path / "model").rglob("*") if path.is_file() and path.stat().st_size)
    assert {path.suffix for path in files} == {".state", ".window", ".end"}
    assert digest(*(path.read_bytes() for path in files)) == CACHES[window]
    found = DiskTier(tmp_path, "model", format_in(window).snapshot, 10**6, b"key").find(key, 0)
    assert found is not None
    for array, wanted in zip((*found.recurrent, *found.window), (*snapshot.recurrent, *snapshot.window), strict=True):
        np.testing.assert_array_equal(array, wanted)
