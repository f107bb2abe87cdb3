"""The command line: what it passes on, and one line for what a user can put right."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from roost.engine import CheckpointError
from roost.server.commands import generate as generate_module
from roost.server.commands import serve as serve_module
from roost.server.commands.generate import Options
from roost.server.commands.main import app
from roost.server.model_hub import huggingface
from roost.server.settings import Group, Settings
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

runner = CliRunner()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings of every `roost serve`, which does nothing else."""
    calls: list[Settings] = []
    monkeypatch.setattr(serve_module, "serve", lambda settings: calls.append(settings) or 0)
    return calls


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    calls: list[Options] = []
    monkeypatch.setattr(generate_module, "generate", lambda options: calls.append(options) or 0)
    return calls


def test_version() -> None:
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("roost ")


def test_help_and_clients_of_servers_do_not_import_jax() -> None:
    """It takes a second and more."""
    modules = ("main", "chat.command", "chat.server_backend", "bench.cli", "bench.serve.benchmark")
    imports = "".join(f"import roost.server.commands.{name}\n" for name in modules)
    script = f"import sys\n{imports}print('jax' in sys.modules)"
    found = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_every_setting_of_the_core_is_a_flag(served: list[Settings]) -> None:
    flags: dict[str, Any] = {
        "--host": "0.0.0.0",
        "--port": "1",
        "--served-model-name": "m",
        "--api-key": "k",
        "--dtype": "float32",
        "--quantize": "int8",
        "--kv-dtype": "int8",
        "--seed": "2",
        "--slots": "3",
        "--max-queue": "4",
        "--prefill-chunk": "64",
        "--itl-target-ms": "50.5",
        "--compile-cache": "off",
        "--max-tokens-limit": "5",
        "--max-queue-tokens": "6",
        "--reserved-slots": "2",
        "--request-timeout": "7.5",
        "--drain-timeout": "8",
        "--drain-lag": "0",
        "--step-timeout": "9",
        "--stall-timeout": "10",
        "--admin-port": "6",
        "--api-key-file": "keys",
        "--admin-key": "root",
        "--ssl-certfile": "cert",
        "--ssl-keyfile": "key",
        "--allow-origin": "https://example.org",
        "--max-body-bytes": "2000",
        "--max-connections": "3000",
        "--max-prompt-tokens": "7",
        "--metrics-compat": "vllm",
        "--otlp-traces-endpoint": "http://localhost:4318/v1/traces",
        "--log-format": "json",
        "--log-level": "warning",
        "--access-log": "off",
        "--state-cache-gib": "1.5",
        "--state-cache-dir": "states",
        "--state-cache-dir-gib": "2",
        "--state-key": "sixteen characters and more",
        "--store": "sqlite:///responses.db",
        "--store-days": "3",
        "--mesh": "data=2,model=4",
        "--coordinator": "first:8482",
        "--num-hosts": "2",
        "--host-index": "1",
        "--simulate": "v5e",
    }
    switches = ["--strict", "--cache-salt-by-key", "--state-cache-inexact"]
    arguments = [*(word for pair in flags.items() for word in pair), *switches]
    assert runner.invoke(app, ["serve", "random:2b", *arguments]).exit_code == 0
    settings = served[0].model_dump(include=set(Settings.model_fields))
    assert [key.get_secret_value() for key in settings.pop("api_key")] == ["k"]
    assert [key.get_secret_value() for key in settings.pop("admin_key")] == ["root"]
    assert settings.pop("state_key").get_secret_value() == "sixteen characters and more"
    assert settings.pop("store").get_secret_value() == "sqlite:///responses.db"
    assert settings == {
        "config": None,
        "model": "random:2b",
        "host": "0.0.0.0",
        "port": 1,
        "served_model_name": "m",
        "dtype": "float32",
        "quantize": "int8",
        "kv_dtype": "int8",
        "seed": 2,
        "slots": 3,
        "max_queue": 4,
        "prefill_chunk": 64,
        "itl_target_ms": 50.5,
        "compile_cache": "off",
        "max_tokens_limit": 5,
        "admin_port": 6,
        "api_key_file": Path("keys"),
        "ssl_certfile": Path("cert"),
        "ssl_keyfile": Path("key"),
        "allow_origin": ("https://example.org",),
        "max_body_bytes": 2000,
        "max_connections": 3000,
        "max_prompt_tokens": 7,
        "metrics_compat": "vllm",
        "otlp_traces_endpoint": "http://localhost:4318/v1/traces",
        "log_format": "json",
        "log_level": "warning",
        "access_log": False,
        "strict": True,
        "max_queue_tokens": 6,
        "reserved_slots": 2,
        "request_timeout": 7.5,
        "drain_timeout": 8.0,
        "drain_lag": 0.0,
        "step_timeout": 9.0,
        "stall_timeout": 10.0,
        "state_cache_gib": 1.5,
        "state_cache_inexact": True,
        "state_cache_dir": Path("states"),
        "state_cache_dir_gib": 2.0,
        "store_days": 3.0,
        "cache_salt_by_key": True,
        "mesh": "data=2,model=4",
        "coordinator": "first:8482",
        "num_hosts": 2,
        "host_index": 1,
        "simulate": "v5e",
    }


def test_serve_needs_no_arguments(served: list[Settings]) -> None:
    assert runner.invoke(app, ["serve"]).exit_code == 0
    assert served[0].model == "demo"


@pytest.mark.parametrize(("words", "model", "prompt"), [(["hi"], "demo", "hi"), (["m", "hi"], "m", "hi")])
def test_one_word_is_the_prompt_and_two_name_a_model(
    generated: list[Options], words: list[str], model: str, prompt: str
) -> None:
    assert runner.invoke(app, ["generate", *words, "--temperature", "0"]).exit_code == 0
    assert (generated[0].settings.model, generated[0].prompt, generated[0].sampling.temperature) == (model, prompt, 0)


def test_three_words_lack_quotes(generated: list[Options]) -> None:
    result = runner.invoke(app, ["generate", "m", "hello", "world"])
    assert result.exit_code == 2
    assert not generated


@pytest.mark.parametrize(
    "arguments",
    [["--slots", "many"], ["--dtype", "half"], ["--config", "/nowhere.toml"], ["--port", "70000"], ["/nowhere"]],
)
def test_an_error_that_a_user_can_fix_is_one_line(arguments: list[str]) -> None:
    result = runner.invoke(app, ["serve", *arguments])
    assert result.exit_code == 1
    assert result.stderr.startswith("roost: ")
    assert result.stderr.count("\n") == 1


def test_a_state_that_is_missing_is_named() -> None:
    result = runner.invoke(app, ["generate", "demo", "hello", "--load-state", "nowhere"])
    assert result.exit_code == 1
    assert result.stderr == "roost: nowhere: no such file\n"


def test_convert_says_what_came_of_it(tmp_path: Path) -> None:
    result = runner.invoke(app, ["convert", "demo", str(tmp_path / "it"), "--quantize", "int8"])
    assert result.exit_code == 0
    assert re.search(r"it: 3\.\d MiB, fingerprint [0-9a-f]{32}\n$", result.stderr)
    assert "writing: " in result.stderr
    assert "quantised to int8" in runner.invoke(app, ["plan", str(tmp_path / "it")]).output


@pytest.mark.parametrize("options", [["--format", "gguf"], ["--quantize", "int4"], ["--dtype", "half"], []])
def test_convert_refuses_in_one_line(tmp_path: Path, options: list[str]) -> None:
    """Without options, since the destination is there."""
    destination = tmp_path / "it" if options else tmp_path
    result = runner.invoke(app, ["convert", "demo", str(destination), *options])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("roost: ")


@pytest.mark.parametrize(
    "model",
    [
        "./nonexistent",
        "../models/it",
        "~/models/it",
        "/models/it",
        ".cache/it",
        "models/it/",
        "models/a/b",
        "it",
        "models/it.safetensors",
        "models/It.GGUF",
        "models/config.json",
        ".",
        "models/.it",
        "it.bin",
        "./owner/it@main",
    ],
)
def test_a_path_that_is_not_there_is_no_repository(monkeypatch: pytest.MonkeyPatch, model: str, tmp_path: Path) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(huggingface, "fetch", lambda repo, revision: fetched.append(repo))
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["serve", model, "--port", "0"])
    assert result.exit_code == 1
    assert not fetched
    if model == ".":
        assert "is empty" in result.stderr
    else:
        assert re.match(rf"roost: {re.escape(model)}: no such (file|directory); ", result.stderr), result.stderr


@pytest.mark.parametrize("arguments", [["--slots", "0"], ["/nowhere"]])
def test_an_error_is_an_object_where_log_lines_are(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In Kubernetes the format is a variable."""
    given = runner.invoke(app, ["serve", "--log-format", "json", "--slots", "0"])
    monkeypatch.setenv("ROOST_LOG_FORMAT", "json")
    monkeypatch.setattr(serve_module, "set_up_logging", lambda *_, **__: None)
    monkeypatch.setattr(serve_module, "log_warnings_and_uncaught", lambda: None)
    for result in (given, runner.invoke(app, ["serve", *arguments])):
        line = json.loads(result.stderr)
        assert (result.exit_code, line["level"]) == (1, "error")
        assert line["message"].startswith("roost: ")


def commands(group: TyperGroup, *path: str) -> Iterator[tuple[str, ...]]:
    """The words of every command."""
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, TyperGroup):
            yield from commands(command, *path, name)


@pytest.mark.parametrize("words", [(), *commands(get_command(app))], ids=" ".join)
@pytest.mark.parametrize("columns", [80, 120])
def test_help_is_readable(words: tuple[str, ...], columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = runner.invoke(app, [*words, "-h"])
    assert result.exit_code == 0
    assert result.output == runner.invoke(app, [*words, "--help"]).output
    assert not re.search(r"\[\[|<bool>|\(none\)|default: \(", result.output)
    assert "owner/name on" not in " ".join(result.output.replace("│", "").split())


def test_serve_groups_its_flags() -> None:
    output = runner.invoke(app, ["serve", "-h"], env={"COLUMNS": "120"}).output
    titles = re.findall(r"^╭─ (.+?) ─", output, re.MULTILINE)
    assert titles == ["Arguments", "Options", *Group]
    assert "owner/name[@revision]" in output
    assert "[default: 8000]" in output
    options = output[output.index("╭─ Options") : output.index(f"╭─ {Group.MODEL}")]
    assert re.findall(r"--[\w-]+", options) == ["--help"]


def test_the_shell_can_complete_commands() -> None:
    assert "--install-completion" in runner.invoke(app, ["-h"]).output


def test_a_bug_keeps_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: Settings) -> int:
        raise KeyError("bug")

    monkeypatch.setattr(serve_module, "serve", fail)
    assert isinstance(runner.invoke(app, ["serve"]).exception, KeyError)


def test_a_failed_load_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: Settings) -> int:
        raise CheckpointError("model.safetensors: cut short")

    monkeypatch.setattr(serve_module, "serve", fail)
    assert runner.invoke(app, ["serve"]).stderr == "roost: model.safetensors: cut short\n"
