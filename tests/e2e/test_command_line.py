"""The `roost` command with real models and servers: its output, start and exit."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from roost.server.llm import local_model
from server_process import API_KEY, SHAPES, SLOTS, ServerProcess, run_here, start
from shared_programs import compiled_once

CHUNK: dict[str, Any] = {"ROOST_PREFILL_CHUNK": SHAPES[-1]}
"""Setting of models in the command's own process, for few programs."""


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives commands in this process the programs of the tests' servers."""
    monkeypatch.setattr(local_model, "NUM_SLOTS", SLOTS)


@pytest.mark.usefixtures("few_programs")
def test_generate_saves_a_state_that_another_one_continues(tiny_config: Path, tmp_path: Path) -> None:
    """Messages have their own lines on a terminal, where both streams are one."""
    model, options, state = f"random:{tiny_config}", ("--max-tokens", "5", "--seed", "1"), tmp_path / "state"
    with compiled_once("tiny"):
        saving = run_here("generate", model, "hello " * 40, *options, "--save-state", str(state), **CHUNK)
    assert saving.exit_code == 0, saving.stderr
    assert "noise" in saving.stderr
    assert saving.stdout.endswith("\n")
    *_, saved, status, end = saving.output.split("\n")
    assert saved == f"the state is in {state}, {state.stat().st_size / 1024:.1f} KiB"
    assert status.startswith("5 tokens, ")
    assert end == ""
    fresh, continued = (
        run_here("generate", model, "and then?", *options, *more, **CHUNK)
        for more in ((), ("--load-state", str(state)))
    )
    assert continued.exit_code == 0, continued.stderr
    assert "5 tokens" in continued.stderr
    assert continued.stdout != fresh.stdout


@pytest.mark.full
def test_generate_is_a_process_that_ends(tiny_config: Path) -> None:
    process = start("generate", f"random:{tiny_config}", "hello", "--max-tokens", "5", "--seed", "1", **CHUNK)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.endswith("\n")
    assert err.splitlines()[-1].startswith("5 tokens, ")


@pytest.mark.full
@pytest.mark.usefixtures("few_programs")
def test_local_chat_continues_from_its_state(tiny_config: Path) -> None:
    """Each line of a pipe is a message."""
    arguments = ("chat", f"random:{tiny_config}", "--max-tokens", "5")
    with compiled_once("tiny"):
        ended = run_here(*arguments, text="hello\nand then?\n/retry\n", **CHUNK)
    assert ended.exit_code == 0, ended.stderr
    assert ended.stdout.count("\n") >= 3


def test_a_chat_with_a_server(server: ServerProcess) -> None:
    arguments = ("chat", "--url", server.url, "--max-tokens", "5", "--seed", "1", "--top-k", "10")
    ended = run_here(*arguments, text="hello\nand then?\n", ROOST_API_KEY=API_KEY)
    assert ended.exit_code == 0, ended.stderr
    assert ended.stdout.count("\n") >= 2


def test_without_a_key_a_servers_own_message_is_the_error(server: ServerProcess) -> None:
    ended = run_here("chat", "--url", server.url, text="hello\n", ROOST_API_KEY="wrong")
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert ended.stderr.startswith("roost: the server does not list its models (HTTP 401")
    assert ended.stderr.endswith("; give its key with --api-key or ROOST_API_KEY\n")
    assert ended.stderr.count("\n") == 1


@pytest.mark.full
def test_ctrl_c_while_loading_ends_a_chat(tiny_config: Path) -> None:
    process = start("chat", f"random:{tiny_config}", stdin=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("loading weights")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_port_in_use_is_an_error(server: ServerProcess) -> None:
    port = server.url.rsplit(":", 1)[1]
    ended = run_here("serve", "--port", port)
    assert ended.exit_code == 1
    assert ended.stderr.startswith(f"roost: --port {port}: cannot listen on")
    assert ended.stderr.count("\n") == 1


@pytest.mark.full
def test_a_signal_while_compiling_ends_it_at_once(tiny_config: Path) -> None:
    process = start("serve", f"random:{tiny_config}", "--port", "0")
    assert process.stderr is not None
    assert process.stderr.readline().startswith("loading weights")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "address" not in err
    assert "Traceback" not in err


@pytest.mark.full
def test_a_checkpoint_that_cannot_be_loaded_is_one_line(tmp_path: Path, tiny_config: Path) -> None:
    """The engine's thread finds the mistake while the server already responds."""
    (tmp_path / "config.json").write_bytes(tiny_config.read_bytes())
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    process = start("serve", str(tmp_path), "--port", "0")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err == f"roost: {tmp_path / 'model.safetensors'}: holds no tensors; download it again\n"
    assert err.count("\n") == 1


def test_a_folder_that_cannot_be_is_found_before_the_model_is_loaded(tmp_path: Path, tiny_config: Path) -> None:
    (tmp_path / "file").touch()
    ended = run_here("serve", f"random:{tiny_config}", "--port", "0", "--state-cache-dir", str(tmp_path / "file"))
    assert (ended.exit_code, ended.stderr) == (
        2,
        f"roost: --state-cache-dir {tmp_path / 'file'}: cannot be made (File exists)\n",
    )
