"""Command-line options of settings, and how `--help` shows them."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Final, cast

import typer
from rich.markup import escape
from typer.core import TyperGroup, TyperOption

from ..settings import MODEL_CHOICES, SettingReference, setting_reference, settings_reference

MODEL_HELP: Final = escape(f"A{MODEL_CHOICES[1:]}.")
"""Values of MODEL, escaped for rich, which would take `[@revision]` for a style."""


def setting_option(name: str, help: str | None = None, *, is_grouped: bool = False) -> Any:
    """Returns the option of a setting.

    Args:
      name: Name of the setting.
      help: Description, where the setting's own does not fit the command.
      is_grouped: Whether `--help` lists the option under the title of its group.
    """
    setting = setting_reference(name)
    return typer.Option(
        setting.flag,
        help=escape(help or setting.help),
        show_default=setting.default,
        metavar=setting.metavar,
        rich_help_panel=setting.group if is_grouped else None,
    )


def model_argument() -> Any:
    """Returns the argument MODEL, which may be left out."""
    return typer.Argument(help=MODEL_HELP, show_default=setting_reference("model").default, metavar="MODEL")


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command, which takes any keyword arguments, MODEL and the option of every setting."""
    cast(Any, command).__signature__ = inspect.Signature([_parameter(each) for each in settings_reference()])
    return command


def _parameter(setting: SettingReference) -> inspect.Parameter:
    """Returns a parameter that defaults to None, so that the environment and the config file come next."""
    option = model_argument() if setting.name == "model" else setting_option(setting.name, is_grouped=True)
    annotation = cast(Any, Annotated)[setting.kind | None, option]
    return inspect.Parameter(setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


class CommandGroup(TyperGroup):
    """Commands whose `--help` shows no `<bool>` beside switches, and described defaults without parentheses."""

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
