"""The page of the Python API in docs/reference/, from signatures and docstrings. `reference_pages.py` writes it."""

import ast
import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import roost
from roost.server.llm import requests
from roost.server.llm.tokenizer import LLMTokenizer

sys.path.append(str(Path(__file__).parent))  # for an interpreter with -P
from markdown_tables import code, row, wide_table

_START: Final = """
# Python API

All names are imported from `roost`; [In Python, without a server](../tutorials/python.md) is the tutorial.
`**settings` are those of [`roost serve`](settings.md) that don't concern HTTP, with underscores in their names.
"""

_LINE: Final = 88
"""Maximum characters of a signature on one line."""

SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "Models": ("LLM", "AsyncLLM", "EngineArgs"),
    "Prompts": ("TextPrompt", "TokensPrompt"),
    "Parameters": ("SamplingParams", "StructuredOutputsParams", "RequestOutputKind"),
    "Outputs": ("RequestOutput", "CompletionOutput", "Logprob", "ToolCall", "Score", "State"),
    "Errors": ("RoostError", "RequestError", "ConfigError", "CheckpointError", "StateFileError", "EngineDeadError"),
}
"""Public names by section, in the order of the page."""


def python_page() -> Iterator[str]:
    """Yields the lines of the page."""
    yield from _START.splitlines()
    for title, names in SECTIONS.items():
        yield from ("", f"## {title}")
        for name in names:
            yield from _class_section(name, getattr(roost, name))
        if title == "Models":
            yield from _class_section("LLMTokenizer", LLMTokenizer)
        if title == "Prompts":
            yield from _class_section("ChatOptions", requests.ChatOptions)
            yield from _aliases()


def _class_section(name: str, kind: type) -> Iterator[str]:
    """Yields a class: its text, its fields or the arguments of its constructor, and its public methods."""
    doc = Docstring(inspect.getdoc(kind))
    yield from ("", f"### {name}", "")
    if issubclass(kind, Exception):
        yield from (f"Base class: `{kind.__bases__[0].__name__}`.", "", *doc.text, *_fields((), doc))
        return
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    functions = [each for each in tree.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
    if init := next((each for each in functions if each.name == "__init__"), None):
        yield from (f"```py\n{_signature(name, init)}\n```", "")
    yield from doc.text
    yield from _fields([each for each in tree.body if isinstance(each, ast.AnnAssign)], doc)
    for each in functions:
        if not each.name.startswith("_") and (text := ast.get_docstring(each)):
            yield from ("", f"#### {name}.{each.name}", "", f"```py\n{_signature(each.name, each)}\n```", "")
            yield from Docstring(text).text
            yield from Docstring(text).tables()


def _fields(declared: Sequence[ast.AnnAssign], doc: "Docstring") -> Iterator[str]:
    """Yields the fields of a class with their types and defaults, or else what its docstring lists."""
    if not declared:
        yield from doc.tables()
        return
    meanings = doc.sections.get("Attributes", {})
    rows = []
    for each in declared:
        name = ast.unparse(each.target)
        default = "–" if each.value is None else code(ast.unparse(each.value))
        rows.append(row(f"`{name}`", code(ast.unparse(each.annotation)), default, meanings.get(name, "–")))
    yield from ("", *wide_table(row("field", "type", "default", "meaning"), rows))


def _aliases() -> Iterator[str]:
    """Yields the names of types in signatures."""
    body = ast.parse(inspect.getsource(requests)).body
    for alias, doc in itertools.pairwise(body):
        if isinstance(alias, ast.TypeAlias) and isinstance(doc, ast.Expr):
            yield from ("", f"`{ast.unparse(alias)}`: {ast.literal_eval(doc.value)}")


def _signature(name: str, function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Returns a signature as it is written, with a parameter on each line if it is long, without `self`."""
    arguments = function.args
    arguments.args = arguments.args[1:]
    words = "async " if isinstance(function, ast.AsyncFunctionDef) else ""
    returned = "" if name[0].isupper() or function.returns is None else f" -> {ast.unparse(function.returns)}"
    parts = list(_parts(arguments))
    line = f"{words}{name}({', '.join(parts)}){returned}"
    if len(line) <= _LINE:
        return line
    indented = "".join(f"    {part},\n" for part in parts)
    return f"{words}{name}(\n{indented}){returned}"


def _parts(arguments: ast.arguments) -> Iterator[str]:
    defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + list(arguments.defaults)
    yield from map(_parameter, arguments.args, defaults)
    if arguments.kwonlyargs:
        yield "*"
        yield from map(_parameter, arguments.kwonlyargs, arguments.kw_defaults)
    if arguments.kwarg:
        yield f"**{ast.unparse(arguments.kwarg)}"


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(argument) + ("" if default is None else f" = {ast.unparse(default)}")


_HEADS: Final = {
    "Attributes": row("attribute", "meaning"),
    "Args": row("argument", "meaning"),
    "Raises": row("raises", "when"),
}


class Docstring:
    """A docstring in Google style.

    Attributes:
      text: Lines before the first section; indented ones are code.
      sections: Entries by name, for each section.

    Args:
      text: The docstring.
    """

    def __init__(self, text: str | None) -> None:
        head, *rest = re.split(r"^(Args|Attributes|Raises):\n", text or "", flags=re.MULTILINE)
        self.text = head.rstrip().splitlines()
        self.sections = {name: _entries(body) for name, body in zip(rest[::2], rest[1::2], strict=True)}

    def tables(self) -> Iterator[str]:
        """Yields arguments and errors."""
        for section, head in _HEADS.items():
            if section in self.sections:
                entries = self.sections[section].items()
                names = ((", ".join(f"`{each}`" for each in name.split(", ")), text) for name, text in entries)
                yield from ("", *wide_table(head, (row(*each) for each in names)))


def _entries(body: str) -> dict[str, str]:
    """Returns the entries of a section, of which longer ones go on in lines that are indented deeper."""
    joined = re.sub(r"\n {2,}", " ", textwrap.dedent(body))
    return dict(line.strip().split(": ", 1) for line in joined.splitlines() if line.strip())
