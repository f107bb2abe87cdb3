"""Command-line options of settings, options that several commands share, and how `--help` shows them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, cast

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup, TyperOption

from ..settings import MODEL_CHOICES, foreign_flag_hint, setting_reference, settings_reference
from .failure import exit_on_usage_error

MODEL_HELP: Final = escape(f"A{MODEL_CHOICES[1:]}.")
"""Values of MODEL, escaped for rich, which would take `[@revision]` for a style."""

_CONFIG_HELP: Final = "TOML file of settings, as `roost serve` reads it."

ApiKey = Annotated[
    str | None,
    typer.Option(
        help="Key of the server; other users can read it here, but not in ROOST_API_KEY.",
        envvar="ROOST_API_KEY",
        metavar="KEY",
        show_default=False,
    ),
]


def completion(values: Sequence[str]) -> Callable[..., list[str]] | None:
    """Returns the function that completes a value in a shell; None completes it as a path."""
    return (lambda incomplete: [value for value in values if value.startswith(incomplete)]) if values else None


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Adds MODEL and the option of every setting to a command, which must accept any keyword arguments."""
    return _with_options(command, {each.name: _option(each.name, is_grouped=True) for each in settings_reference()})


def takes_model_options(*names: str, **helps: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds the options of some settings to a command, after its own options. The command must accept any keyword
    arguments.

    Args:
      names: Names of the settings.
      helps: Descriptions by name, for settings whose own description does not fit the command.
    """
    texts = {"config": _CONFIG_HELP, **helps}
    return lambda command: _with_options(command, {name: _option(name, texts.get(name)) for name in names})


def _option(name: str, help: str | None = None, *, is_grouped: bool = False) -> Any:
    """Returns the option of a setting, or the argument MODEL, which may be left out.

    Args:
      name: Name of the setting.
      help: Description, where the setting's own does not fit the command.
      is_grouped: Whether `--help` lists the option under the title of its group.
    """
    setting = setting_reference(name)
    if name == "model":
        return typer.Argument(help=MODEL_HELP, show_default=setting.default, metavar="MODEL")
    return typer.Option(
        setting.flag,
        help=escape(help or setting.help),
        show_default=setting.default,
        metavar=setting.metavar,
        rich_help_panel=setting.group if is_grouped else None,
        autocompletion=completion(setting.values),
    )


def _with_options(command: Callable[..., None], options: Mapping[str, Any]) -> Callable[..., None]:
    """Adds options that default to None, so that the environment and the config file come next."""
    signature = inspect.signature(command)
    own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    given = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=cast(Any, Annotated)[setting_reference(name).kind | None, option],
        )
        for name, option in options.items()
    ]
    cast(Any, command).__signature__ = signature.replace(parameters=[*own, *given])
    return command


class CommandGroup(TyperGroup):
    """Commands whose `--help` is complete and tidy, and whose usage errors are one line."""

    def get_params(self, ctx: Any) -> Any:
        return _tidied(super().get_params(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _tidied(command.get_params(ctx))
            if command.callback and (doc := inspect.getdoc(command.callback)):  # Python 3.13 describes None
                command.help = _prose(doc)
        return command

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with exit_on_usage_error():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with exit_on_usage_error():
            return super().invoke(ctx)


class ServeCommand(TyperCommand):
    """A command that answers flags of vLLM and llama.cpp with Roost's own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {name for param in self.get_params(ctx) for name in param.opts}
        for flag in (word.partition("=")[0] for word in args if word.startswith("-")):
            if flag not in own and (hint := foreign_flag_hint(flag)) is not None:
                ctx.fail(hint)
        return super().parse_args(ctx, args)


def _prose(doc: str) -> str:
    """Returns a docstring for Rich: paragraphs without line breaks, and square brackets that are not styles."""
    return escape("\n\n".join(" ".join(paragraph.split()) for paragraph in doc.split("\n\n")))


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
