"""The command line: what it passes on, and one line for what a user can put right."""

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from roost.engine import (
    CPU,
    DEVICES,
    CheckpointError,
)
from roost.server.commands import generate as generate_module
from roost.server.commands import serve as serve_module
from roost.server.commands.main import app
from roost.server.commands.options import GenerateOptions
from roost.server.llm.local_model import LocalModel
from roost.server.model_hub import huggingface
from roost.server.settings import Settings, all_settings, flag_name
from roost.server.settings.fields import Group
from roost.server.settings.foreign_names import LLAMA_CPP_NAMES, VLLM_NAMES, foreign_flag_hint
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
def generated(monkeypatch: pytest.MonkeyPatch) -> list[GenerateOptions]:
    calls: list[GenerateOptions] = []
    monkeypatch.setattr(generate_module, "generate", lambda options: calls.append(options) or 0)
    return calls


def test_version() -> None:
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("roost ")


def test_help_and_clients_of_servers_do_not_import_jax() -> None:
    """It takes a second and more."""
    modules = ("main", "chat", "bench.serve")
    imports = "".join(f"import roost.server.commands.{name}\n" for name in modules)
    script = f"import sys\n{imports}print('jax' in sys.modules)"
    found = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_every_setting_of_the_core_is_a_flag(served: list[Settings]) -> None:
    values: dict[str, Any] = {
        "host": "0.0.0.0",
        "port": 1,
        "served_model_name": ("m",),
        "dtype": "float32",
        "quantize": "int8",
        "kv_dtype": "int8",
        "seed": 2,
        "without_kernels": ("rg_lru",),
        "lora": ("pirate=0.5",),
        "slots": 3,
        "max_queue": 4,
        "prefill_chunk": 64,
        "itl_target_ms": 50.5,
        "compile_cache": "off",
        "max_tokens_limit": 5,
        "max_queue_tokens": 6,
        "reserved_slots": 2,
        "request_timeout": 7.5,
        "drain_timeout": 8.0,
        "drain_lag": 0.0,
        "step_timeout": 9.0,
        "stall_timeout": 10.0,
        "admin_port": 6,
        "uds": Path("roost.sock"),
        "root_path": "/llm",
        "forwarded_allow_ips": ("10.0.0.5",),
        "api_key_file": Path("keys"),
        "ssl_certfile": Path("cert"),
        "ssl_keyfile": Path("key"),
        "allow_origin": ("https://example.org",),
        "allow_host": ("chat.example.org",),
        "max_body_bytes": 2000,
        "max_connections": 3000,
        "max_prompt_tokens": 7,
        "metrics_compat": "vllm",
        "otlp_traces_endpoint": "http://localhost:4318/v1/traces",
        "log_format": "json",
        "log_level": "warning",
        "state_cache_gib": 1.5,
        "state_cache_dir": Path("states"),
        "state_cache_dir_gib": 2.0,
        "store_days": 3.0,
        "mesh": "data=2,model=4",
        "coordinator": "first:8482",
        "num_hosts": 2,
        "host_index": 1,
        "simulate": "v5e",
    }
    others = {
        "access_log": ("off", False),
        "speculative_config": ('{"method": "ngram"}', {"method": "ngram"}),
        "api_key": ("k", (SecretStr("k"),)),
        "admin_key": ("root", (SecretStr("root"),)),
        "state_key": ("sixteen characters and more", SecretStr("sixteen characters and more")),
        "store": ("sqlite:///responses.db", SecretStr("sqlite:///responses.db")),
    }
    switches = ("strict", "cache_salt_by_key", "state_cache_inexact")
    written = {name: str(value[0] if isinstance(value, tuple) else value) for name, value in values.items()}
    written |= {name: text for name, (text, _) in others.items()}
    flags = [word for name, text in written.items() for word in (flag_name(name), text)]
    assert runner.invoke(app, ["serve", "random:2b", *flags, *map(flag_name, switches)]).exit_code == 0
    expected = {**values, **{name: value for name, (_, value) in others.items()}, **dict.fromkeys(switches, True)}
    assert served[0].model_dump(include=set(Settings.model_fields)) == {
        "config": None,
        "model": "random:2b",
        **expected,
    }


@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--served-model-name", "a", "b", "--slots", "1"],
        ["demo", "--slots", "1", "--served-model-name", "a", "b"],
        ["--served-model-name", "a", "--slots", "1", "--served-model-name=b", "demo"],
    ],
)
def test_several_names_may_follow_one_flag_after_the_model(served: list[Settings], words: list[str]) -> None:
    assert runner.invoke(app, ["serve", *words]).exit_code == 0
    assert (served[0].model, served[0].served_model_name, served[0].slots) == ("demo", ("a", "b"), 1)


def test_a_word_after_a_name_without_a_model_before_is_the_model(served: list[Settings]) -> None:
    assert runner.invoke(app, ["serve", "--served-model-name", "a", "random:2b"]).exit_code == 0
    assert (served[0].model, served[0].served_model_name) == ("random:2b", ("a",))


def test_serve_needs_no_arguments(served: list[Settings]) -> None:
    assert runner.invoke(app, ["serve"]).exit_code == 0
    assert served[0].model == "demo"


@pytest.mark.parametrize(
    ("words", "model", "prompt"),
    [(["hi"], "demo", "hi"), (["random:2b", "hi"], "recurrentgemma-2b-random", "hi"), (["-"], "demo", "two\nlines\n")],
)
def test_one_word_is_the_prompt_and_two_name_a_model(
    monkeypatch: pytest.MonkeyPatch, words: list[str], model: str, prompt: str
) -> None:
    asked: list[tuple[str, str]] = []

    async def run(local: LocalModel, prompt: str, *_: object) -> None:
        asked.append((local.service.model.id, prompt))

    monkeypatch.setattr(generate_module, "_run", run)
    assert runner.invoke(app, ["generate", *words], input="two\nlines\n").exit_code == 0
    assert asked == [(model, prompt)]


def test_options_of_a_command_and_of_its_model_reach_it(generated: list[GenerateOptions]) -> None:
    words = ["m", "hi", "--temperature", "0", "--dtype", "float32"]
    assert runner.invoke(app, ["generate", *words]).exit_code == 0
    assert (generated[0].words, generated[0].sampling()) == (["m", "hi"], {"max_tokens": 256, "temperature": 0})
    assert {name: value for name, value in generated[0].settings.items() if value} == {"dtype": "float32"}


def test_three_words_lack_quotes(generated: list[GenerateOptions]) -> None:
    result = runner.invoke(app, ["generate", "m", "hello", "world"])
    assert result.exit_code == 2
    assert not generated


def test_two_ports_that_are_one_are_both_named() -> None:
    result = runner.invoke(app, ["serve", "--port", "8000", "--admin-port", "8000"])
    assert result.exit_code == 2
    assert result.stderr == "roost: --port and --admin-port must differ, and both are 8000\n"


def test_a_state_that_is_missing_is_named() -> None:
    result = runner.invoke(app, ["generate", "demo", "hello", "--load-state", "nowhere"])
    assert result.exit_code == 2
    assert result.stderr.startswith("roost: --load-state: file 'nowhere' does not exist")


def test_convert_says_what_came_of_it(tmp_path: Path) -> None:
    result = runner.invoke(app, ["convert", "demo", str(tmp_path / "it"), "--quantize", "int8"])
    assert result.exit_code == 0
    assert re.search(r"it: 3\.\d MiB, fingerprint [0-9a-f]{32}\n$", result.stderr)
    assert "writing: " in result.stderr
    assert "quantised to int8" in runner.invoke(app, ["plan", str(tmp_path / "it")]).output


@pytest.mark.full
def test_convert_calibrates_for_a_text(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and the dog sleeps. " * 400)
    options = ["--quantize", "int4", "--calibrate"]
    result = runner.invoke(app, ["convert", "demo", str(tmp_path / "it"), *options, str(text)])
    assert result.exit_code == 0, result.stderr
    searched = runner.invoke(app, ["convert", "demo", str(tmp_path / "searched"), *options[:2]])
    sizes = [re.search(r"(\S+ MiB), fingerprint (\S+)", each.stderr) for each in (result, searched)]
    assert sizes[0] is not None
    assert sizes[1] is not None
    assert sizes[0][1] == sizes[1][1]
    assert sizes[0][2] != sizes[1][2]


def test_calibrate_refuses_what_it_cannot_read_in_one_line(tmp_path: Path) -> None:
    short, binary, missing = (tmp_path / name for name in ("short.txt", "binary.txt", "missing.txt"))
    short.write_text("Too short.")
    binary.write_bytes(b"\xff\xfe\x00")
    for options, said in (
        (["--quantize", "int8", "--calibrate", "default"], "--calibrate takes quantize int4"),
        (["--quantize", "int4", "--calibrate", str(missing)], f"--calibrate cannot read {missing} (No such file or di"),
        (["--quantize", "int4", "--calibrate", str(binary)], "--calibrate takes text in UTF-8"),
        (["--quantize", "int4", "--calibrate", str(short)], "--calibrate takes at least 4088 tokens of text, and "),
    ):
        result = runner.invoke(app, ["convert", "demo", str(tmp_path / "it"), *options])
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert result.stderr.startswith(f"roost: {said}")
        assert not (tmp_path / "it").exists()


@pytest.mark.parametrize("options", [["--quantize", "int3"], ["--dtype", "half"], []])
def test_convert_refuses_in_one_line(tmp_path: Path, options: list[str]) -> None:
    """Without options, since the destination is there."""
    destination = tmp_path / "it" if options else tmp_path
    result = runner.invoke(app, ["convert", "demo", str(destination), *options])
    assert (result.exit_code, result.stderr.count("\n")) == (2 if options else 1, 1)
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
        assert (result.exit_code, line["level"]) == (1 if "nowhere" in line["message"] else 2, "error")
        assert line["message"].startswith("roost: ")


def commands(group: object, *path: str) -> Iterator[tuple[str, ...]]:
    """The words of every command."""
    assert isinstance(group, TyperGroup)
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, TyperGroup):
            yield from commands(command, *path, name)


def text_of(output: str) -> str:
    """Returns an output without frames and line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", output).split())


@pytest.mark.parametrize("words", [(), *commands(get_command(app))], ids=" ".join)
@pytest.mark.parametrize("columns", [80, 120])
def test_help_is_readable(words: tuple[str, ...], columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = runner.invoke(app, [*words, "-h"])
    assert result.exit_code == 0
    assert result.output == runner.invoke(app, [*words, "--help"]).output
    assert not re.search(r"\[\[|<bool>|\(none\)|default: \(", result.output)
    assert "owner/name on" not in text_of(result.output)
    monkeypatch.setenv("COLUMNS", "500")
    whole = runner.invoke(app, [*words, "-h"]).output
    assert not {*text_of(whole).split()} - {*text_of(result.output).split()}, "words that are cut"
    assert "…" not in result.output


@pytest.mark.parametrize("words", [(), *commands(get_command(app))], ids=" ".join)
@pytest.mark.parametrize("columns", [80, 120])
def test_help_says_what_each_command_and_group_is_for(words: tuple[str, ...], columns: int) -> None:
    """It has every word of a command's docstring, and begins with what the list of its group says."""
    command: Any = get_command(app)
    for word in words:
        command = command.commands[word]
    text = command.help if isinstance(command, TyperGroup) else inspect.getdoc(command.callback)
    assert text
    env = {"COLUMNS": str(columns)}
    prose = runner.invoke(app, [*words, "--help"], env=env).output.partition("╭")[0].strip("\n").splitlines()[2:]
    assert text_of("\n".join(prose)).endswith(" ".join(text.split()))
    assert all(len(line) > columns / 2 for line, after in pairwise(prose) if line.strip() and after.strip())
    if words:
        first = " ".join(text.partition("\n\n")[0].split())
        assert f"{words[-1]} {first}" in text_of(runner.invoke(app, [*words[:-1], "--help"], env=env).output)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("serve --no-such-flag", "--no-such-flag is unknown; roost serve --help says what it takes"),
        (
            "serve --max-queu 3",
            "--max-queu is unknown; did you mean --max-queue?; roost serve --help says what it takes",
        ),
        ("serve --prot 8001", "--prot is unknown; did you mean --port?; roost serve --help says what it takes"),
        ("chat --temp 0", "--temp is unknown; did you mean --temperature?; roost chat --help says what it takes"),
        ("serve --port many", "--port must be a valid integer; roost serve --help says what it takes"),
        ("serve --port 70000", "--port must be at most 65535, got 70000"),
        ("serve --port", "--port needs a value\n"),
        ("serve a b", "unexpected argument: b; roost serve --help says what it takes"),
        ("plan", "MODEL is missing; roost plan --help says what it takes"),
        ("chat demo --temperature -1", "--temperature must be at least 0, got -1"),
        (
            "generate demo hi --max-tokens 0",
            "--max-tokens must be at least 1; roost generate --help says what it takes",
        ),
        ("chat --url http://127.0.0.1:1 --max-tokens 0", "--max-tokens must be at least 1; roost chat --help says"),
        ("generate demo hi --top-k -2", "--top-k must be at least -1, got -2"),
        ("serve --slots many", '--slots must be a whole number, got "many"'),
        ("serve --config /nowhere.toml", "config /nowhere.toml: cannot be read (No such file or directory)"),
        ("generate demo hi --save-state /nowhere/x", "--save-state /nowhere/x: give a file in a folder that exists"),
        ("generate a b c", "PROMPT: put the prompt in quotes; roost generate --help says what it takes"),
        ("bench engine --repeat 0", "--repeat must be at least 1; roost bench engine --help says"),
        ("generate", "PROMPT is missing: give it in quotes, or - to read it from stdin; roost generate --help says"),
        ("run", "run is Ollama's command: use roost chat MODEL in the terminal, or roost serve MODEL for a server; "),
        (
            "pull recurrentgemma",
            "pull is Ollama's command: leave it out: the first serve, chat or generate of a model ",
        ),
        ("run-batch a b", "run-batch is vLLM's command: use roost batch; roost --help says what it takes"),
        ("bench run", "run is unknown; roost bench --help says what it takes"),
        ("generat hi", "generat is unknown; did you mean generate?; roost --help says what it takes"),
        ("nope", "nope is unknown; roost --help says what it takes"),
        ("--nope", "--nope is unknown; roost --help says what it takes"),
    ],
)
def test_a_wrong_value_is_one_line_with_the_status_of_usage(words: str, line: str) -> None:
    result = runner.invoke(app, words.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"roost: {line}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [*commands(get_command(app))], ids=" ".join)
def test_an_option_with_two_swapped_letters_is_recognised(words: tuple[str, ...]) -> None:
    """The first two or the last two, in every option of every command."""
    command: Any = get_command(app)
    for word in words:
        command = command.commands[word]
    flags = [flag for each in command.params for flag in each.opts if flag.startswith("--") and len(flag) > 5]
    for flag in flags:
        pairs = [at for at in range(2, len(flag) - 1) if flag[at] != flag[at + 1]]
        typos = {f"{flag[:at]}{flag[at + 1]}{flag[at]}{flag[at + 2 :]}" for at in (pairs[0], pairs[-1])}
        for typo in typos:
            error = runner.invoke(app, [*words, typo]).stderr
            assert error.startswith(f"roost: {typo} is unknown; did you mean {flag}?"), error


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--max-num-seqs 4", "--max-num-seqs is vLLM's flag: use --slots"),
        ("--tensor-parallel-size=2", "--tensor-parallel-size is vLLM's flag: use --mesh, such as data=1,model=2"),
        ("-tp 2", "-tp is vLLM's flag: use --mesh, such as data=1,model=2"),
        ("--gpu-memory-utilization 0.9", "--gpu-memory-utilization is vLLM's flag: use --slots, or "),
        ("--max-model-len 8192", "--max-model-len is vLLM's flag: a state has the same size at any length: "),
        ("-ngl 99", "-ngl is llama.cpp's flag: leave it out: the whole model runs on the accelerator"),
        ("-c 4096", "-c is llama.cpp's flag: a state has the same size at any length: --max-prompt-tokens and "),
        ("--parallel 4", "--parallel is llama.cpp's flag: use --slots"),
        ("-m it.gguf", "-m is llama.cpp's flag: give MODEL as the first argument, without a flag"),
        ("--model it", "--model is llama.cpp's flag: give MODEL as the first argument, without a flag"),
    ],
)
def test_flags_of_other_servers_are_answered_with_ours(words: str, line: str) -> None:
    result = runner.invoke(app, ["serve", *words.split()])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"roost: {line}")
    assert result.stderr.count("\n") == 1


def test_hints_name_flags_that_exist_for_names_that_do_not() -> None:
    settings = all_settings().model_fields
    for name in (*VLLM_NAMES, *LLAMA_CPP_NAMES):
        hint = foreign_flag_hint(f"--{name.replace('_', '-')}")
        assert hint is not None
        assert name not in settings or name == "model"
        named = re.findall(r"--[a-z-]+", hint.partition(": ")[2])
        assert {each.removeprefix("--").replace("-", "_") for each in named} <= settings.keys()


def test_a_gguf_file_says_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "it.gguf"
    file.touch()
    for model in (file, tmp_path):
        result = runner.invoke(app, ["serve", str(model), "--port", "0"])
        assert result.exit_code == 1
        assert result.stderr.startswith(f"roost: {file}: is a GGUF file, which only llama.cpp and its like read; use ")
    missing = runner.invoke(app, ["serve", "other.gguf"]).stderr
    assert missing.startswith(
        "roost: other.gguf: no such file; MODEL is the folder of a model's safetensors (not GGUF)"
    )


def test_a_shell_completes_values() -> None:
    for words, values in (
        ("serve --dtype ", {"auto", "float32", "bfloat16"}),
        ("serve --log-level w", {"warning"}),
        ("plan --device ", {*DEVICES, CPU}),
        ("plan --dtype b", {"bfloat16"}),
        ("convert --dtype f", {"float32"}),
    ):
        env = {"_ROOST_COMPLETE": "complete_bash", "COMP_WORDS": f"roost {words}", "COMP_CWORD": "3"}
        assert set(runner.invoke(app, [], env=env, prog_name="roost").output.split()) == values


def test_serve_groups_its_flags() -> None:
    output = runner.invoke(app, ["serve", "-h"], env={"COLUMNS": "120"}).output
    titles = re.findall(r"^╭─ (.+?) ─", output, re.MULTILINE)
    assert titles == ["Arguments", "Options", *Group]
    assert "owner/name[@revision]" in output
    assert "[default: 8000]" in output
    options = output[output.index("╭─ Options") : output.index(f"╭─ {Group.COMMON}")]
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
