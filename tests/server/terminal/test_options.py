"""Options of a command: a dataclass declares its own, and those of settings are named."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from roost.engine import ConfigError
from roost.server.settings.reference import setting_reference
from roost.server.terminal.options import takes_options
from typer.testing import CliRunner

runner = CliRunner()


@dataclass(frozen=True, kw_only=True)
class Common:
    limit: Annotated[int | None, typer.Option(help="Limit.")] = None


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    repeat: Annotated[int, typer.Option(help="Runs.")] = 3
    settings: Mapping[str, Any] = field(default_factory=dict)


def test_options_of_settings_follow_a_commands_own() -> None:
    app, calls = typer.Typer(), list[Options]()

    @app.command()
    @takes_options(Options, "model", "prefill_chunk", "dtype", "seed", seed="Seed of prompts.")
    def measure(options: Options) -> int:
        """Measure it."""
        calls.append(options)
        if options.limit == 0:
            raise ConfigError("limit must be at least 1, got 0")
        return 7

    unset = {"model": None, "prefill_chunk": None, "dtype": None, "seed": None}
    assert runner.invoke(app, []).exit_code == 7
    assert runner.invoke(app, ["random:2b", "--prefill-chunk", "64", "--repeat", "1"]).exit_code == 7
    given = Options(repeat=1, settings={**unset, "model": "random:2b", "prefill_chunk": 64})
    assert calls == [Options(settings=unset), given]
    assert runner.invoke(app, ["--prefill-chunk", "many"]).exit_code == 2
    assert runner.invoke(app, ["--limit", "0"]).stderr == "roost: --limit must be at least 1, got 0\n"
    shown = " ".join(runner.invoke(app, ["--help"], env={"COLUMNS": "200"}).output.split())
    options = ("--repeat", "--limit", "--prefill-chunk", "--dtype", "--seed")
    assert sorted(options, key=shown.index) == list(options)
    assert setting_reference("dtype").help.split(".")[0] in shown
    assert "Seed of prompts." in shown
    assert setting_reference("seed").help not in shown
    assert "Measure it." in shown
