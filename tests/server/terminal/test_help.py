"""Options of settings: a command names them, and their declarations do the rest."""

from typing import Annotated, Any

import typer
from roost.server.settings import setting_reference
from roost.server.terminal.options import takes_model_options
from typer.testing import CliRunner

runner = CliRunner()


def test_options_of_settings_follow_a_commands_own() -> None:
    app, calls = typer.Typer(), list[tuple[int, dict[str, Any]]]()

    @app.command()
    @takes_model_options("model", "prefill_chunk", "dtype", "seed", seed="Seed of prompts.")
    def measure(repeat: Annotated[int, typer.Option(help="Runs.")] = 3, **model_options: Any) -> None:
        calls.append((repeat, model_options))

    unset = {"model": None, "prefill_chunk": None, "dtype": None, "seed": None}
    assert runner.invoke(app, []).exit_code == 0
    assert runner.invoke(app, ["random:2b", "--prefill-chunk", "64", "--repeat", "1"]).exit_code == 0
    assert calls == [(3, unset), (1, {**unset, "model": "random:2b", "prefill_chunk": 64})]
    assert runner.invoke(app, ["--prefill-chunk", "many"]).exit_code == 2
    shown = " ".join(runner.invoke(app, ["--help"], env={"COLUMNS": "200"}).output.split())
    assert shown.index("--repeat") < shown.index("--prefill-chunk") < shown.index("--dtype") < shown.index("--seed")
    assert setting_reference("dtype").help.split(".")[0] in shown
    assert "Seed of prompts." in shown
    assert setting_reference("seed").help not in shown
