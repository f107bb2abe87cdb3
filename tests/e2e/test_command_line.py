"""The `roost` command as a process: start and exit."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
from server_process import API_KEY, SHAPES, ServerProcess, serving, start
from shared_programs import compiled_once

ONE_SLOT: dict[str, Any] = {"ROOST_PREFILL_CHUNK": "64"}
"""Settings of models in the command's own process, for few programs, which `test_local_model.py` shares."""


def test_generate_writes_to_stdout_and_continues_a_state(tiny_config: Path, tmp_path: Path) -> None:
    """The state has been saved by another process."""
    model, options, state = f"random:{tiny_config}", ["--max-tokens", "5", "--seed", "1"], str(tmp_path / "state")
    with compiled_once("one-slot"):
        process = start("generate", model, "hello " * 40, *options, "--save-state", state, **ONE_SLOT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.endswith("\n")
    assert "noise" in err
    assert "5 tokens" in err
    assert f"the state is in {state}, " in err
    process = start("generate", model, "and then?", *options, "--load-state", state, **ONE_SLOT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "5 tokens" in err


def test_messages_of_generate_have_their_own_lines(tiny_config: Path, tmp_path: Path) -> None:
    """On a terminal both streams are one."""
    state = tmp_path / "state"
    process = start(
        "generate",
        f"random:{tiny_config}",
        "hello",
        *("--max-tokens", "5", "--seed", "1", "--save-state", str(state)),
        stderr=subprocess.STDOUT,
        **ONE_SLOT,
    )
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    *_, answer, saved, status, end = out.split("\n")
    assert answer
    assert saved == f"the state is in {state}, {state.stat().st_size} B"
    assert status.startswith("5 tokens, ")
    assert end == ""


def test_local_chat_continues_from_its_state(tiny_config: Path) -> None:
    """Each line of a pipe is a message."""
    process = start("chat", f"random:{tiny_config}", "--max-tokens", "5", stdin=subprocess.PIPE, **ONE_SLOT)
    out, err = process.communicate("hello\nand then?\n/retry\n", timeout=120)
    assert process.returncode == 0, err
    assert out.count("\n") >= 3
    assert "Traceback" not in err


def test_a_chat_with_a_server(server: ServerProcess) -> None:
    """The first line has a key; without one, the server's own message is the error."""
    for key, status in ((API_KEY, 0), ("wrong", 1)):
        process = start(
            *("chat", "--url", server.url, "--max-tokens", "5", "--seed", "1", "--top-k", "10"),
            stdin=subprocess.PIPE,
            ROOST_API_KEY=key,
        )
        out, err = process.communicate("hello\nand then?\n", timeout=120)
        assert process.returncode == status, err
        if status:
            assert out == ""
            assert err.startswith("roost: the server does not list its models (HTTP 401")
            assert err.endswith("; give its key with --api-key or ROOST_API_KEY\n")
            assert err.count("\n") == 1
        else:
            assert out.count("\n") >= 2


def test_ctrl_c_while_loading_ends_a_chat(tiny_config: Path) -> None:
    process = start("chat", f"random:{tiny_config}", stdin=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("loading weights")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_port_in_use_is_an_error(server: ServerProcess) -> None:
    process = start("serve", "--port", server.url.rsplit(":", 1)[1])
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.startswith("roost: cannot listen on")
    assert err.count("\n") == 1


def test_a_signal_while_compiling_ends_it_at_once(tiny_config: Path) -> None:
    process = start("serve", f"random:{tiny_config}", "--port", "0")
    assert process.stderr is not None
    assert process.stderr.readline().startswith("loading weights")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "address" not in err
    assert "Traceback" not in err


def test_a_signal_while_programs_with_drafts_are_compiled_ends_a_ready_server(tiny_config: Path) -> None:
    drafts = ("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 31}')
    with serving(f"random:{tiny_config}", *SHAPES, *drafts) as server:
        generated = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 3}, timeout=120)
        assert generated.status_code == 200


def test_a_checkpoint_that_cannot_be_loaded_is_one_line(tmp_path: Path, tiny_config: Path) -> None:
    """The engine's thread finds the mistake while the server already responds."""
    (tmp_path / "config.json").write_bytes(tiny_config.read_bytes())
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    process = start("serve", str(tmp_path), "--port", "0")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err == f"roost: {tmp_path / 'model.safetensors'}: holds no tensors; download it again\n"
    assert err.count("\n") == 1


def test_plan_prints_what_fits_without_loading_anything() -> None:
    process = start("plan", "random:9b", "--device", "v6e")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "576" in out
    assert "25.0 MiB" in out


def test_a_folder_that_cannot_be_is_found_before_the_model_is_loaded(tmp_path: Path, tiny_config: Path) -> None:
    (tmp_path / "file").touch()
    process = start("serve", f"random:{tiny_config}", "--port", "0", "--state-cache-dir", str(tmp_path / "file"))
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (
        2,
        f"roost: --state-cache-dir {tmp_path / 'file'}: cannot be made (File exists)\n",
    )
