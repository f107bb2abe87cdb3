"""Settings of stored responses, on the command line and in the environment."""

from pathlib import Path

import pytest
from roost.server.commands import serve as serve_module
from roost.server.commands.main import app
from roost.server.features.responses.settings import ResponsesSettings
from roost.server.settings import Settings, SettingsError, load_settings
from typer.testing import CliRunner

VALUES = {
    "adopt_after": 11.0,
    "state_store": Path("checkpoints"),
    "checkpoint_seconds": 12.0,
    "checkpoint_mib_per_s": 13.0,
    "evacuate_seconds": 14.0,
}


def test_every_setting_of_responses_is_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Settings] = []
    monkeypatch.setattr(serve_module, "serve", lambda settings: served.append(settings) or 0)
    flags = [word for name, value in VALUES.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    result = CliRunner().invoke(app, ["serve", "random:2b", "--store", "sqlite:///responses.db", *flags])
    assert result.exit_code == 0
    own = ResponsesSettings.model_fields.keys() - Settings.model_fields.keys()
    assert served[0].model_dump(include=set(own)) == VALUES


def test_settings_of_responses_are_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_ADOPT_AFTER", "7")
    settings = load_settings({})
    assert isinstance(settings, ResponsesSettings)
    assert settings.adopt_after == 7


def test_a_state_store_needs_a_shared_store() -> None:
    with pytest.raises(SettingsError, match=r"\A--state-store needs a --store that replicas share"):
        load_settings({"state_store": "checkpoints"})
