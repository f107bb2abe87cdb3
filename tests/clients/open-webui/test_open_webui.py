"""Open WebUI, which needs Python 3.12 and versions of its own of all packages, without the models that it would run."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest
from pasted_settings import environment_of, pasted
from ports import free_port
from questions import ANSWER, QUESTION
from server_process import ServerProcess

_START_S: Final = 240.0

TALK: Final = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]

TASKS: Final = {
    "title": {"messages": TALK},
    "tags": {"messages": TALK},
    "follow_up": {"messages": TALK},
    "queries": {"type": "web_search", "messages": TALK},
    "auto": {"type": "general", "prompt": "The capital of", "messages": TALK},
    "emoji": {"prompt": QUESTION},
    "moa": {"prompt": QUESTION, "responses": [ANSWER, "Rome"]},
}
"""Bodies with which the page starts requests that Open WebUI itself makes of a chat, by the name of the task."""


@pytest.fixture(scope="module")
def page(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Client of an Open WebUI that was started with the lines of our page, and in which a first user has signed up."""
    folder = tmp_path_factory.mktemp("open-webui")
    script = pasted("Open WebUI", server).removeprefix("pip install open-webui\n")  # which the environment has
    port, log = free_port(), folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-e", "-c", script.replace("open-webui", "exec open-webui") + f" --host 127.0.0.1 --port {port}"],
            cwd=folder,
            env={**environment_of(folder, Path(sys.executable).parent), "DATA_DIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as client:
            until = time.monotonic() + _START_S
            while not _answers(client):
                assert process.poll() is None, log.read_text()[-4000:]
                assert time.monotonic() < until, log.read_text()[-4000:]
                time.sleep(0.2)
            user = {"name": "A", "email": "a@example.com", "password": "a-Password-1"}
            token = client.post("/api/v1/auths/signup", json=user).raise_for_status().json()["token"]
            client.headers["Authorization"] = f"Bearer {token}"
            yield client
    finally:
        process.terminate()
        process.wait()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").is_success
    except httpx.TransportError:
        return False


def test_models_and_chat(page: httpx.Client) -> None:
    models = page.get("/api/models").raise_for_status().json()["data"]
    assert "demo" in [model["id"] for model in models]
    body = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}]}
    answer = page.post("/api/chat/completions", json={**body, "stream": False}).raise_for_status().json()
    said = answer["choices"][0]["message"]["content"]
    assert said
    with page.stream("POST", "/api/chat/completions", json={**body, "stream": True, "temperature": 0}) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert len(events) > 2


@pytest.mark.parametrize("task", TASKS)
def test_requests_of_its_own(page: httpx.Client, task: str) -> None:
    settings = page.get("/api/v1/tasks/config").raise_for_status().json()
    switched = {**settings, "ENABLE_AUTOCOMPLETE_GENERATION": True}  # off by default
    page.post("/api/v1/tasks/config/update", json=switched).raise_for_status()
    page.get("/api/models").raise_for_status()  # a task takes only models that were listed
    body = {"model": "demo", **TASKS[task]}
    answer = page.post(f"/api/v1/tasks/{task}/completions", json=body).raise_for_status().json()
    assert answer["model"] == "demo"
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] > 0
