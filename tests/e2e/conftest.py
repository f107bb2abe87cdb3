"""A real server with a small random model, which all tests here share since it takes seconds to start."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import API_KEY, MAX_QUEUE, SHAPES, ServerProcess, serving
from shared_programs import TINY


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture(scope="session")
def server(tiny_config: Path) -> Iterator[ServerProcess]:
    """Server whose only model is `MODEL`."""
    arguments = [*SHAPES, "--max-queue", str(MAX_QUEUE), "--metrics-compat", "vllm"]
    with serving(f"random:{tiny_config}", *arguments, programs="tiny", ROOST_API_KEY=API_KEY) as process:
        yield process
