"""What --help says in more than one place."""

from typing import Any, Final

import typer
from rich.markup import escape
from typer.core import TyperGroup, TyperOption

from ..setting_names import flag_name
from ..settings import Settings

MODEL_CHOICES: Final = (
    "a directory (safetensors with config.json, or an official Flax checkpoint), owner/name[@revision] on Hugging "
    "Face, kaggle:google/recurrentgemma/flax/2b-it, gs://bucket/path, random:2b, random:9b, random:CONFIG.json, or "
    "demo"
)
"""What MODEL may be, as errors say it."""

MODEL_HELP: Final = escape(f"A{MODEL_CHOICES[1:]}.")
"""The same for rich, which would take `[@revision]` for a style."""

MODEL: Final = "Model"
CAPACITY: Final = "Capacity"
DEVICES: Final = "Devices and hosts"
HTTP: Final = "HTTP"
SECURITY: Final = "Security"
CACHE: Final = "Cache"
SHUTDOWN: Final = "Timeouts and shutdown"
LOGS: Final = "Logs and metrics"
"""Titles of the groups that flags are shown in."""

QUANTIZE_HELP: Final = "int8: weights take half the memory, and steps less time; answers are almost the same."


def flag(name: str, text: str, group: str, metavar: str | None = None, default: str | None = None) -> Any:
    """Returns the flag of a setting.

    Args:
      name: of the setting.
      text: what `--help` says about it.
      group: the title that it is shown under.
      metavar: name of its value; None takes one of the type.
      default: in words, for one that no value says; an empty text shows none.
    """
    value = Settings.model_fields[name].default
    shown = default if default is not None else "" if value is None or value is False else shown_default(name)
    return typer.Option(flag_name(name), help=escape(text), show_default=shown, metavar=metavar, rich_help_panel=group)


class Group(TyperGroup):
    """Commands whose `--help` shows no `<bool>` beside switches, and defaults in words without parentheses."""

    def get_params(self, ctx: Any) -> Any:
        return _tidied(super().get_params(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _tidied(command.get_params(ctx))
        return command


def _tidied(params: Any) -> Any:
    for param in params:
        if isinstance(param, TyperOption) and param.is_flag and param.metavar is None:
            param.metavar = ""
        if isinstance(param.show_default, str):
            param.help = f"{param.help or ''} {_default_text(param.show_default)}".strip()
            param.show_default = False
    return params


def _default_text(default: str) -> str:
    return "" if default in ("none", "") else f"[dim]{escape(f'[default: {default}]')}[/dim]"


def shown_default(name: str) -> str:
    """A setting's default. Flags themselves default to None, so that the environment and the file have their say."""
    value = Settings.model_fields[name].default
    if isinstance(value, float):
        return f"{value:g}"
    return "auto" if value is None else str(value)
