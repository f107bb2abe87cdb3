"""What `roost serve` would make of a container."""

import re
from typing import Any, Final

import pytest
import typer
from roost.server.commands.main import app
from roost.server.settings import Settings, load_settings

SET_VARIABLES: Final = {"LWS_LEADER_ADDRESS": "roost-0.roost-0.default", "LWS_GROUP_SIZE": "2"}
"""What the controller of a LeaderWorkerSet puts into every container, besides LWS_WORKER_INDEX."""


SECRETS: Final = {
    "ROOST_STORE": "postgresql://database/roost",
    "ROOST_ADMIN_KEY": "admin",
    "ROOST_STATE_KEY": "0123456789abcdef",
}
"""What secrets hold, by the variables that get it."""


def settings_of(container: dict[str, Any], monkeypatch: pytest.MonkeyPatch, index: int = 0) -> Settings:
    """From its arguments and its environment; a flag that there is none of, or a value that is wrong, raises.

    Args:
      container: as the manifest has it.
      monkeypatch: gets the environment.
      index: of the host in its group.
    """
    for variable in container["env"]:
        if variable["name"].startswith("ROOST_"):
            monkeypatch.setenv(variable["name"], variable.get("value") or SECRETS[variable["name"]])
    variables = SET_VARIABLES | {"LWS_WORKER_INDEX": str(index)}
    arguments = [re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], each) for each in container["args"]]
    assert arguments[0] == "serve"
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    given = command.make_context("serve", arguments[1:]).params
    return load_settings({name: value for name, value in given.items() if value not in (None, [], ())})
