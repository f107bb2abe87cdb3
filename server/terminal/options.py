"""Command-line options of commands and of settings, and how `--help` shows them."""

import ast
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, cast, get_type_hints

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup, TyperOption

from ..settings.foreign_names import foreign_command_hint, foreign_flag_hint
from ..settings.reference import setting_reference, settings_reference
from ..settings.settings import MODEL_CHOICES
from .exits import exit_on_error, exit_on_usage_error

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
    return _with_signature(command, [_parameter(each.name, is_grouped=True) for each in settings_reference()])


def takes_options[Options](
    kind: type[Options], *settings: str, **helps: str
) -> Callable[[Callable[[Options], int]], Callable[..., None]]:
    """Makes a command of a function that returns an exit status.

    Args:
      kind: Dataclass with a field for each option, annotated as Typer's parameters are. The text below a field is its
        description, unless the annotation has one.
      settings: Names of settings that are options, too. The field `settings` has their values by name, or None.
      helps: Descriptions by name, for settings whose own description does not fit the command.
    """
    own, texts = _own_parameters(kind), {"config": _CONFIG_HELP, **helps}
    added = [_parameter(name, texts.get(name)) for name in settings]

    def decorate(function: Callable[[Options], int]) -> Callable[..., None]:
        def command(**given: Any) -> None:
            fields: dict[str, Any] = {name: given.pop(name) for name in own}
            if settings:
                fields["settings"] = given
            with exit_on_error(*own, *settings):
                status = function(kind(**fields))
            raise typer.Exit(status)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return _with_signature(command, [*own.values(), *added])

    return decorate


def _own_parameters(kind: type) -> Mapping[str, inspect.Parameter]:
    """Returns the parameters of a dataclass's options, with its base classes' options last."""
    hints = get_type_hints(kind, include_extras=True)
    names = [name for each in kind.__mro__ for name in inspect.get_annotations(each)]
    defaults = inspect.signature(kind).parameters
    for name, text in itertools.chain.from_iterable(map(_field_docs, reversed(kind.__mro__[:-1]))):
        (option,) = hints[name].__metadata__
        option.help = option.help or text
    return {
        name: inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name].default, annotation=hints[name]
        )
        for name in dict.fromkeys(names)
        if hasattr(hints[name], "__metadata__")
    }


def _field_docs(kind: type) -> Iterator[tuple[str, str]]:
    """Yields the fields of a class that have a docstring, and its text in one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    for field, doc in itertools.pairwise(tree.body):
        match field, doc:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                yield name, " ".join(text.split())


def _parameter(name: str, help: str | None = None, *, is_grouped: bool = False) -> inspect.Parameter:
    """Returns the parameter of a setting. It defaults to None, so that the environment and the config file come next.

    Args:
      name: Name of the setting.
      help: Description, where the setting's own does not fit the command.
      is_grouped: Whether `--help` lists the option under the title of its group.
    """
    setting = setting_reference(name)
    option: Any = typer.Argument(help=MODEL_HELP, show_default=setting.default, metavar="MODEL")
    if name != "model":
        option = typer.Option(
            setting.flag,
            help=escape(help or setting.help),
            show_default=setting.default,
            metavar=setting.metavar,
            rich_help_panel=setting.group if is_grouped else None,
            autocompletion=completion(setting.values),
        )
    annotation = cast(Any, Annotated)[setting.kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _with_signature(command: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> Callable[..., None]:
    cast(Any, command).__signature__ = inspect.Signature(parameters)
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

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        hint = foreign_command_hint(args[0]) if ctx.parent is None else None
        if hint is not None and self.get_command(ctx, args[0]) is None:
            ctx.fail(hint)
        return super().resolve_command(ctx, args)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with exit_on_usage_error():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with exit_on_usage_error():
            return super().invoke(ctx)


_NAMES_FLAG: Final = "--served-model-name"


class ServeCommand(TyperCommand):
    """A command that answers flags of vLLM and llama.cpp with Roost's own, and takes several names after one flag."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {name for param in self.get_params(ctx) for name in param.opts}
        for flag in (word.partition("=")[0] for word in args if word.startswith("-")):
            if flag not in own and (hint := foreign_flag_hint(flag)) is not None:
                ctx.fail(hint)
        return super().parse_args(ctx, self._with_flag_for_each_name(ctx, args))

    def _with_flag_for_each_name(self, ctx: Any, args: list[str]) -> list[str]:
        """Returns the arguments with a flag before each name of the model, where vLLM's users write one before all.

        That is so after MODEL only: before it, the word after a name is MODEL.
        """
        if _NAMES_FLAG not in args:
            return args
        start = args.index(_NAMES_FLAG)
        names = list(itertools.takewhile(lambda word: not word.startswith("-"), args[start + 1 :]))
        before, _, _ = self.make_parser(ctx).parse_args(args[:start])
        if not isinstance(before.get("model"), str):
            return args
        flagged = [word for name in names for word in (_NAMES_FLAG, name)] or [_NAMES_FLAG]
        return [*args[:start], *flagged, *args[start + 1 + len(names) :]]


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
