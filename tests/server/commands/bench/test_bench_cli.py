"""Command line of `roost bench`: the options that it passes on, and errors in one line."""

from pathlib import Path
from typing import Any

import pytest
from roost.server.commands.bench.engine import benchmark as engine_module
from roost.server.commands.bench.serve import benchmark as serve_module
from roost.server.commands.main import app
from typer.testing import CliRunner

runner = CliRunner()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options of every benchmark, none of which is run."""
    calls: list[Any] = []
    for module, name in ((engine_module, "engine"), (serve_module, "serve")):
        monkeypatch.setattr(module, f"bench_{name}", lambda options, outputs: calls.append(options) or 0)
    return calls


def test_an_engine_needs_no_options(calls: list[Any]) -> None:
    assert runner.invoke(app, ["bench", "engine"]).exit_code == 0
    assert calls[0].settings.model == "demo"
    assert calls[0].workloads == ["prefill", "decode", "mixed"]


def test_engine_options_are_those_of_serve(calls: list[Any]) -> None:
    words = "random:2b --slots 8 --dtype float32 --prefill-chunk 128 --seed 3 --quantize int8 --workload decode"
    assert runner.invoke(app, ["bench", "engine", *words.split()]).exit_code == 0
    settings = calls[0].settings
    assert (settings.model, settings.slots, settings.dtype) == ("random:2b", 8, "float32")
    assert (settings.prefill_chunk, settings.seed, settings.quantize) == (128, 3, "int8")
    assert calls[0].workloads == ["decode"]


def test_limits_may_be_several_words(calls: list[Any]) -> None:
    words = "bench serve --goodput ttft:500 itl:50 e2e:5000 --num-prompts 7 --input-len 100:900"
    assert runner.invoke(app, words.split()).exit_code == 0
    assert str(calls[0].goodput) == "ttft:500 itl:50 e2e:5000"
    assert (calls[0].num_prompts, str(calls[0].input_len)) == (7, "100:900")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("engine --slots many", "slots"),
        ("engine --request-rate x", "--request-rate"),
        ("engine --json /nowhere/x.json", "--json"),
        ("serve --url example.org", "--url"),
        ("serve --concurrency 2 --request-rate 3", "--concurrency"),
        ("serve --input-len 9:1", "--input-len"),
        ("serve --output-len 0", "--output-len"),
        ("serve --goodput speed:1", "--goodput"),
        ("serve here", "--url"),
        ("serve --svg /nowhere/x.svg", "--svg"),
        ("engine --dtype half", "dtype"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(words: str, named: str) -> None:
    result = runner.invoke(app, ["bench", *words.split()])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("roost: ")
    assert named in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("words", ["engine --repeat 0", "serve --num-prompts 0", "serve --nope"])
def test_what_typer_refuses_has_the_same_status(words: str) -> None:
    assert runner.invoke(app, ["bench", *words.split()]).exit_code == 2


def test_a_missing_extra_is_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = runner.invoke(app, ["bench", "serve", "--svg", str(tmp_path / "x.svg")])
    assert result.exit_code == 1
    assert result.stderr == "roost: --svg needs matplotlib; in a clone of Roost, pip install '.[bench]'\n"
