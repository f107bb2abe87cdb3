"""The runner that tests of the engine share, since compiling takes long."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from cache_settings import restored
from roost.engine import EngineConfig, ModelRunner, engine_core, load_runner, open_model
from shared_programs import compiled_once, folder

TINY = Path(__file__).parents[1] / "golden" / "tiny-a"
SLOTS = 4


@pytest.fixture(scope="session")
def golden_runner() -> Iterator[ModelRunner]:
    """Runs the golden model in float32, with chunks of 64 and 128, and the programs that read slots and replay tokens.

    `e2e/test_golden_http.py` shares the other programs through the compile cache.
    """
    programs = folder()
    config = EngineConfig(SLOTS, prefill_chunk=128, dtype="float32", request_snapshots=True, compile_cache=programs)
    with compiled_once("golden"), restored():
        runner = load_runner(open_model(str(TINY / "hf")), config)
    yield runner
    runner.close()


@pytest.fixture
def steady_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's clock advances by a millisecond at each look, so that no plan depends on this machine's speed."""
    milliseconds = count()
    monkeypatch.setattr(engine_core, "time", SimpleNamespace(monotonic=lambda: next(milliseconds) / 1000))


@pytest.fixture(scope="module")
def runner(golden_runner: ModelRunner) -> Iterator[ModelRunner]:
    """Yields the shared runner, and checks that the module's tests compiled nothing."""
    before = golden_runner.compiles_since_ready
    yield golden_runner
    assert golden_runner.compiles_since_ready == before
