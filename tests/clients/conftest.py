"""A real server with the demo model, shared by all clients. Nothing here leaves this machine."""

import os
import tempfile
from collections.abc import Iterator

import pytest

OFFLINE = {
    "ANONYMIZED_TELEMETRY": "False",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "NO_PROXY": "127.0.0.1,localhost",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
os.environ.update(OFFLINE)  # before any client is imported

from server_process import API_KEY, SHAPES, ServerProcess, serving  # noqa: E402


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """Server with the bundled demo model, and a database for batches. Clients of Hugging Face cannot but send their own
    names of models."""
    with tempfile.TemporaryDirectory() as folder:
        own = {"ROOST_API_KEY": API_KEY, "ROOST_STORE": f"sqlite://{folder}/store.db", "JAX_PLATFORMS": "cpu"}
        environment = {"ROOST_COMPILE_CACHE": folder, **os.environ, **own}
        names = ("demo", "--served-model-name", "demo", "dummy", "tgi")
        with serving(*names, *SHAPES, **environment) as process:
            yield process


@pytest.fixture
def local_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets huggingface_hub send requests, which it doesn't where it is told to be offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture(scope="session")
def base_url(server: ServerProcess) -> str:
    """Returns the base URL for OpenAI's clients."""
    return f"{server.url}/v1"
