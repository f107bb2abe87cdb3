"""The page of commands in docs/reference/, from the parser of the `roost` command. `reference_pages.py` writes it."""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import typer
from rich.text import Text
from roost.server.commands.main import app
from roost.server.terminal.options import MODEL_HELP
from typer.main import get_command

sys.path.append(str(Path(__file__).parent))  # for an interpreter with -P
from markdown_tables import code, row, wide_table

_START: Final = f"""
# Commands

Every command of `roost`, as `roost COMMAND --help` describes it. `--help` (`-h`) is an option of each. Options that
are [settings](settings.md) are also taken from the environment and from the config file. All commands have the same
[exit statuses](errors.md#exit-statuses-of-commands).

MODEL is {MODEL_HELP[0].lower()}{Text.from_markup(MODEL_HELP[1:]).plain}
"""


def commands_page() -> Iterator[str]:
    """Yields the lines of the page."""
    root: Any = get_command(app)
    yield from (*_START.splitlines(), *_options(root))
    for path, command in commands(root, "roost"):
        usage = " ".join([path, *command.collect_usage_pieces(_context(command, path))])
        yield from ("", f"## {path}", "", f"```text\n{usage}\n```", "", inspect.getdoc(command.callback) or "")
        yield from _options(command)


def commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields every command below a group that does something, with the words that call it."""
    for name, command in group.commands.items():
        below = f"{path} {name}"
        yield from commands(command, below) if hasattr(command, "commands") else [(below, command)]


def _context(command: Any, path: str = "") -> Any:
    return typer.Context(command, info_name=path)


def _options(command: Any) -> Iterator[str]:
    shown = [param for param in command.params if not getattr(param, "hidden", False)]
    own = [param for param in shown if getattr(param, "rich_help_panel", None) is None]
    if len(own) < len(shown):
        yield from ("", "Options are all [settings](settings.md).")
    if own:
        head = row("argument, option", "default", "meaning")
        yield from ("", *wide_table(head, (_option_row(param, command) for param in own)))


def _option_row(param: Any, command: Any) -> str:
    kind = param.metavar or param.display_type(_context(command)).replace(" range", "")
    metavar = "" if getattr(param, "is_flag", False) else kind
    words = [*param.opts, metavar] if param.param_type_name == "option" else [metavar]
    return row(code(" ".join(filter(None, words))), _default(param), _plain(param.help))


def _default(param: Any) -> str:
    if isinstance(param.show_default, str):
        return _plain(param.show_default) or "–"
    if param.required:
        return "required"
    return "–" if param.default in (None, False, "") or not param.show_default else f"`{param.default}`"


def _plain(markup: str | None) -> str:
    return Text.from_markup(markup or "").plain.replace(Text.from_markup(MODEL_HELP).plain, "see [MODEL](#commands).")
