"""What `roost serve` would make of a container."""

from typing import Any

import pytest
import typer
from roost.server.cli import app
from roost.server.settings import Settings, load_settings


def settings_of(container: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """From its arguments and its environment; a flag that there is none of, or a value that is wrong, raises."""
    for variable in container["env"]:
        if variable["name"].startswith("ROOST_"):
            monkeypatch.setenv(variable["name"], variable["value"])
    assert container["args"][0] == "serve"
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    given = command.make_context("serve", container["args"][1:]).params
    return load_settings({name: value for name, value in given.items() if value not in (None, [], ())})
