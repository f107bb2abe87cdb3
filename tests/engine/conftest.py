"""One runner for all tests of the engine that need a device: it takes long to compile."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cache_settings import restored
from roost.engine import EngineConfig, ModelRunner, load_runner, open_model

TINY = Path(__file__).parents[1] / "golden" / "tiny-a"
SLOTS = 4


@pytest.fixture(scope="session")
def golden_runner() -> Iterator[ModelRunner]:
    """The golden model in float32, with chunks of 64 and 128, and the program that reads slots. The others are those of
    `e2e/test_golden_http.py`, found if that ran before."""
    programs = Path(os.environ["ROOST_COMPILE_CACHE"])  # of this run's own
    config = EngineConfig(SLOTS, prefill_chunk=128, dtype="float32", state_cache_inexact=True, compile_cache=programs)
    with restored():
        runner = load_runner(open_model(str(TINY / "hf")), config)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def runner(golden_runner: ModelRunner) -> Iterator[ModelRunner]:
    """It compiles nothing while a module's tests run."""
    before = golden_runner.compiles_since_ready
    yield golden_runner
    assert golden_runner.compiles_since_ready == before
