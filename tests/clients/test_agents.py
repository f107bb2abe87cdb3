"""Agents for Node, in their non-interactive modes: Continue's, Claude Code and codex."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from node_programs import commands
from pasted_settings import pasted, run_agent
from programs import program
from questions import QUESTION
from server_process import API_KEY, ServerProcess


def test_continue(server: ServerProcess, tmp_path: Path) -> None:
    """After an agent's own prompt of thousands of tokens the model may say anything. Without a response, `cn` fails."""
    folder = tmp_path / ".continue"
    folder.mkdir()
    (folder / "config.yaml").write_text(pasted("Continue", server))
    assert run_agent(f"cn -p '{QUESTION}'", tmp_path, commands()).strip()


def test_claude_code(server: ServerProcess, tmp_path: Path) -> None:
    script = f"{pasted('Claude Code', server)} -p '{QUESTION}' --output-format json"
    found = json.loads(run_agent(script, tmp_path, commands()))
    assert not found["is_error"]
    assert found["result"]
    assert found["usage"]["output_tokens"] > 0


@pytest.fixture
def home(server: ServerProcess, tmp_path: Path) -> Path:
    """Home folder with a configuration of codex."""
    folder = tmp_path / ".codex"
    folder.mkdir()
    (folder / "config.toml").write_text(f"analytics.enabled = false\n{pasted('codex', server)}")
    return tmp_path


def codex(home: Path, *arguments: str) -> list[dict[str, Any]]:
    """Runs `codex exec` and returns its events."""
    program("git", "git")  # which codex runs
    command = ["codex", "exec", "--json", "--skip-git-repo-check", *arguments]
    said = run_agent(f"export ROOST_API_KEY={API_KEY}\n{shlex.join(command)}", home, commands())
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def check_turn(events: list[dict[str, Any]]) -> str:
    """Returns the agent's message of a turn that ended well."""
    kinds = [event["type"] for event in events]
    assert kinds[-1] == "turn.completed", events
    assert events[-1]["usage"]["output_tokens"] > 0
    said = [event["item"] for event in events if event["type"] == "item.completed"]
    return "".join(item["text"] for item in said if item["type"] == "agent_message")


def test_codex_turn_and_resume(home: Path) -> None:
    """The second turn of a session sends the first one again."""
    events = codex(home, QUESTION)
    assert check_turn(events)
    thread = next(event["thread_id"] for event in events if event["type"] == "thread.started")
    assert check_turn(codex(home, "resume", thread, "And of France?"))


def test_codex_output_schema(home: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Madrid", "Paris"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    path = home / "schema.json"
    path.write_text(json.dumps(schema))
    said = check_turn(codex(home, "--output-schema", str(path), QUESTION))
    assert json.loads(said)["city"] in ("Madrid", "Paris")
