"""Codex, OpenAI's coding agent, in its non-interactive mode."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from node_programs import MODULES, node
from programs import missing
from server_process import API_KEY, ServerProcess

CONFIG = """\
model = "demo"
model_provider = "roost"
analytics.enabled = false

[model_providers.roost]
name = "Roost"
base_url = "{base_url}"
env_key = "ROOST_API_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""


@pytest.fixture
def home(base_url: str, tmp_path: Path) -> Path:
    """Home folder with a user's configuration."""
    folder = tmp_path / ".codex"
    folder.mkdir()
    (folder / "config.toml").write_text(CONFIG.format(base_url=base_url))
    return tmp_path


def codex(home: Path, *arguments: str) -> list[dict[str, Any]]:
    """Runs `codex exec` and returns its events."""
    program = MODULES / "@openai" / "codex" / "bin" / "codex.js"
    if not program.is_file() or not shutil.which("git"):
        missing("codex or git", "install npm and git, then run python3 dev.py test-clients")
    environment = {**os.environ, "HOME": str(home), "CODEX_HOME": str(home / ".codex"), "ROOST_API_KEY": API_KEY}
    command = [node(), str(program), "exec", "--json", "--skip-git-repo-check", *arguments]
    run = subprocess.run(
        command, cwd=home, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240
    )
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


def check_turn(events: list[dict[str, Any]]) -> str:
    """Returns the agent's message of a turn that ended well."""
    kinds = [event["type"] for event in events]
    assert kinds[-1] == "turn.completed", events
    assert events[-1]["usage"]["output_tokens"] > 0
    said = [event["item"] for event in events if event["type"] == "item.completed"]
    return "".join(item["text"] for item in said if item["type"] == "agent_message")


def test_turn_and_resume(server: ServerProcess, home: Path) -> None:
    """The second turn of a session sends the first one again."""
    events = codex(home, "What is the capital of Spain?")
    assert check_turn(events)
    thread = next(event["thread_id"] for event in events if event["type"] == "thread.started")
    assert check_turn(codex(home, "resume", thread, "And of France?"))


def test_output_schema(server: ServerProcess, home: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Madrid", "Paris"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    path = home / "schema.json"
    path.write_text(json.dumps(schema))
    said = check_turn(codex(home, "--output-schema", str(path), "What is the capital of Spain?"))
    assert json.loads(said)["city"] in ("Madrid", "Paris")
