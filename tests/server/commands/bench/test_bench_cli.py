"""Command line of `roost bench`: the options that it passes on, and errors in one line."""

from typing import Any

import pytest
from roost.server.commands.bench import engine as engine_module
from roost.server.commands.bench import serve as serve_module
from roost.server.commands.main import app
from typer.testing import CliRunner

runner = CliRunner()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options of every benchmark, none of which is run."""
    calls: list[Any] = []
    for module, name in ((engine_module, "engine"), (serve_module, "serve")):
        monkeypatch.setattr(module, f"bench_{name}", lambda options: calls.append(options) or 0)
    return calls


def test_engine_options_are_its_own_and_those_of_serve(calls: list[Any]) -> None:
    words = "random:2b --slots 8 --dtype float32 --prefill-chunk 128 --seed 3 --quantize int8 --workload decode"
    assert runner.invoke(app, ["bench", "engine", *words.split()]).exit_code == 0
    given = {name: value for name, value in calls[0].settings.items() if value is not None}
    assert given.pop("model") == "random:2b"
    assert given == {"slots": "8", "dtype": "float32", "prefill_chunk": 128, "seed": 3, "quantize": "int8"}
    assert (calls[0].workload, calls[0].repeat) == (["decode"], 3)


def test_limits_may_be_several_words(calls: list[Any]) -> None:
    words = "bench serve --goodput ttft:500 itl:50 e2e:5000 --num-prompts 7"
    assert runner.invoke(app, words.split()).exit_code == 0
    run = serve_module.Run(calls[0])
    assert run.options_as_json()["goodput"] == "ttft:500 itl:50 e2e:5000"
    assert run.options_as_json()["num_prompts"] == 7


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("engine --slots many", "slots"),
        ("engine --json /nowhere/x.json", "--json"),
        ("serve --url example.org", "--url"),
        ("serve --concurrency 2 --request-rate 3", "--concurrency"),
        ("serve --request-rate 0", "--request-rate"),
        ("serve --input-len 9:1", "--input-len"),
        ("serve --output-len 0", "--output-len"),
        ("serve --goodput speed:1", "--goodput"),
        ("serve here", "--url"),
        ("engine --dtype half", "dtype"),
        ("serve --num-prompts 0", "--num-prompts"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(words: str, named: str) -> None:
    result = runner.invoke(app, ["bench", *words.split()])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("roost: ")
    assert named in result.stderr
    assert result.stderr.count("\n") == 1
