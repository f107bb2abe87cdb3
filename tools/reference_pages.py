"""Writes the pages of docs/reference/ that follow from the code: settings, endpoints, commands, Python names …

    python tools/reference_pages.py

`tests/tools/test_documentation.py` fails when a page differs from the code.
"""

import argparse
import inspect
import itertools
import json
import re
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import typer
from prometheus_client import CollectorRegistry
from rich.text import Text
from roost.engine import DraftCounts, EngineStats
from roost.server.app import create_app
from roost.server.commands.main import app
from roost.server.feature import load_features
from roost.server.generation.admission import Admissions
from roost.server.generation.service import Service
from roost.server.http.connection import OpenConnections
from roost.server.observability.metrics import Metrics, store_rows
from roost.server.observability.request_metrics import RowCollector
from roost.server.settings.foreign_names import (
    FOREIGN_COMMANDS,
    LLAMA_CPP_NAMES,
    SHORT_FLAGS,
    VLLM_NAMES,
    foreign_flag_hint,
)
from roost.server.settings.reference import SettingReference, settings_reference
from roost.server.terminal.options import MODEL_HELP
from typer.main import get_command

sys.path.append(str(Path(__file__).parent))  # for an interpreter with -P
from markdown_tables import code, row, rule, wide_table
from reference_python import python_page

FOLDER: Final = Path(__file__).parents[1] / "docs" / "reference"

_NOTE: Final = "<!-- Written by `python tools/reference_pages.py`; change the code instead. -->"


def _head(title: str) -> Sequence[str]:
    return (_NOTE, "", f"# {title}", "")


def settings_page() -> str:
    """Returns the page of all settings."""
    lines = [
        *_head("Settings of `roost serve`"),
        "Each setting is a flag, an environment variable and a key of a TOML file (`--config`). A flag overrides the",
        "environment, the environment the file, the file the default. [Settings](../how-to/settings.md) says which",
        "of them matter.",
    ]
    for group, settings in itertools.groupby(settings_reference(), lambda each: each.group):
        head = row("flag", "environment, TOML key", "default", "meaning")
        lines += ["", f"## {group}", "", *wide_table(head, map(_setting_row, settings))]
    return _page(lines)


def other_servers_page() -> str:
    """Returns the page of flags of other servers."""
    lines = [
        *_head("Flags of vLLM and llama.cpp"),
        "What to do instead of each. `roost serve` says the same in one line. `LLM` and `EngineArgs` of the Python API",
        "take vLLM's keywords where a value means the same or changes nothing. A context length, memory for a growing",
        "cache, and preemption have no flags here, because a request's state has one size.",
    ]
    shorts = {name: f", {short}" for short, name in SHORT_FLAGS.items()}
    for owner, names in (("vLLM", VLLM_NAMES), ("llama.cpp", LLAMA_CPP_NAMES)):
        lines += ["", f"## {owner}", "", row("flag", "here"), rule(2)]
        for name in sorted(names):
            flag = f"--{name.replace('_', '-')}"
            instead = (foreign_flag_hint(flag) or "").removeprefix(f"{flag} is {owner}'s flag: ")
            lines.append(row(f"`{flag}{shorts.get(name, '')}`", instead))
    lines += ["", "## Commands", "", row("command", "of", "here"), rule(3)]
    lines += [row(f"`{command}`", owner, instead) for command, (owner, instead) in FOREIGN_COMMANDS.items()]
    return _page(lines)


def _setting_row(setting: SettingReference) -> str:
    words = [setting.flag]
    if setting.kind is not bool and setting.metavar and setting.metavar != setting.flag:
        words.append(setting.metavar)
    return row(code(" ".join(words)), f"`{setting.variable}`, `{setting.name}`", setting.default or "–", setting.help)


_ENDPOINTS: Final = {
    "endpoints-chat.md": ("Chats and completions", ("/v1/chat/", "/v1/completions", "/v1/models", "/apply-template")),
    "endpoints-responses.md": ("Responses and conversations", ("/v1/responses", "/v1/conversations")),
    "endpoints-batches.md": ("Files and batches", ("/v1/files", "/v1/batches")),
    "endpoints-messages.md": ("Anthropic's messages", ("/v1/messages",)),
    "endpoints-native.md": ("Roost's own endpoints", ("/",)),
}
"""Pages of endpoints: their titles, and the beginnings of their paths, of which the first that fits counts."""


def endpoints_pages() -> Mapping[str, str]:
    """Returns the page of all endpoints, and a page for each API with the parameters and the fields of its bodies."""
    model, metrics = SimpleNamespace(id="", names=()), SimpleNamespace(http=None)
    service = SimpleNamespace(open_requests=None, model=model, admissions=Admissions(), metrics=metrics)
    document = create_app(cast(Service, service), features=()).openapi()
    schemas: Mapping[str, Any] = document["components"]["schemas"]
    apis: dict[str, dict[str, Any]] = {page: {} for page in _ENDPOINTS}
    for path, methods in document["paths"].items():
        page = next(page for page, (_, starts) in _ENDPOINTS.items() if path.startswith(starts))
        apis[page] |= {f"{method.upper()} {path}": operation for method, operation in methods.items()}
    lines = [
        *_head("Endpoints and fields"),
        "`/openapi.json` of a running server has the same in full. [Compatibility](compatibility.md) says what is left",
        "out, and what happens to fields that aren't listed here. [Errors](errors.md) lists the statuses. `null` means",
        "the same as leaving a field out.",
    ]
    for page, operations in apis.items():
        lines += ["", f"## [{_ENDPOINTS[page][0]}]({page})", "", *_meanings(operations)]
    pages = {"endpoints.md": _page(lines)}
    homes: dict[str, str] = {}
    for page, operations in apis.items():
        text = _page(_api_lines(_ENDPOINTS[page][0], operations, schemas, homes))
        for name in re.findall(r"^### (\w+)$", text, re.MULTILINE):
            homes.setdefault(name.lower(), page)
        away = {name: home for name, home in homes.items() if home != page}
        pages[page] = re.sub(r"\]\(#(\w+)\)", partial(_link, away), text)
    return pages


def _link(away: Mapping[str, str], link: re.Match[str]) -> str:
    """Returns the end of a link to an object, which may have its section on another page."""
    return f"]({away.get(link[1], '')}#{link[1]})"


def _meanings(operations: Mapping[str, Any]) -> Iterator[str]:
    return wide_table(
        row("path", "meaning"), (row(f"`{name}`", _first_line(each)) for name, each in operations.items())
    )


def _api_lines(
    title: str, operations: Mapping[str, Any], schemas: Mapping[str, Any], described: Container[str]
) -> Sequence[str]:
    """Returns the lines of an API's page, without the objects that an earlier page describes."""
    lines = [*_head(title), *_meanings(operations)]
    bodies: dict[str, list[str]] = {}
    for name, operation in operations.items():
        body = _body_of(operation)
        if body is not None:
            bodies.setdefault(body, []).append(name)
    for body, names in bodies.items():
        lines += ["", f"## {', '.join(f'`{each}`' for each in names)}", "", *_field_rows(schemas[body], schemas)]
    lines += _parameters(operations, schemas)
    lines += _responses(operations, schemas)
    objects = [name for name in _objects_in(bodies, schemas) if name.lower() not in described]
    lines += ["", "## Objects in bodies"] if objects else []
    for name in objects:
        lines += ["", f"### {name}", "", *_field_rows(schemas[name], schemas)]
    return lines


def _field_rows(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    required = set(schema.get("required", ()))
    rows = []
    for name, field in sorted(schema.get("properties", {}).items(), key=lambda each: each[0] not in required):
        default = "required" if name in required else _default(field)
        rows.append(row(f"`{name}`", _type(field, schemas), default, field.get("description", "")))
    return wide_table(row("field", "type", "default", "meaning"), rows)


def _parameters(operations: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    """Yields the section about parameters in URLs. Ids in paths need no words."""
    rows = [
        row(
            f"`{each['name']}`",
            _type(each["schema"], schemas),
            _default(each["schema"]),
            each.get("description", ""),
            f"`{name}`",
        )
        for name, operation in operations.items()
        for each in operation.get("parameters", ())
        if each["in"] == "query"
    ]
    if rows:
        yield from ("", "## Parameters in the URL", "")
        yield from wide_table(row("parameter", "type", "default", "meaning", "endpoint"), rows)


def _responses(operations: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    """Yields the section about responses that no other API defines: those whose fields are described."""
    endpoints: dict[str, list[str]] = {}
    for name, operation in operations.items():
        for reference in _references(operation["responses"].get("200", {})):
            fields = schemas[reference].get("properties", {})
            if fields and all("description" in field for field in fields.values()):
                for each in dict.fromkeys((reference, *_objects_in([reference], schemas))):
                    endpoints.setdefault(each, []).append(name)
    if endpoints:
        yield from ("", "## Objects in responses", "")
        yield "Other responses have the shapes of OpenAI's and Anthropic's APIs; `/openapi.json` lists their fields."
    for schema, names in endpoints.items():
        yield from ("", f"### {schema}", "", f"In the response of {', '.join(f'`{each}`' for each in names)}:")
        yield from ("", row("field", "type", "meaning"), rule(3))
        for name, field in schemas[schema]["properties"].items():
            yield row(f"`{name}`", _type(field, schemas), field["description"])


def _objects_in(bodies: Iterable[str], schemas: Mapping[str, Any]) -> Sequence[str]:
    """Returns the names of all objects that bodies hold, in the order of the bodies' fields."""
    found: dict[str, None] = {}
    pending = [schemas[body] for body in reversed(list(bodies))]
    while pending:
        schema = pending.pop()
        inner = []
        for reference in _references(schema):
            if reference not in found:
                found[reference] = None
                inner.append(schemas[reference])
        pending += reversed(inner)
    return [name for name in found if "properties" in schemas[name]]


def _references(schema: Any) -> Iterator[str]:
    """Yields the names of the schemas that a schema refers to."""
    if isinstance(schema, list):
        for each in schema:
            yield from _references(each)
    elif isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"].rpartition("/")[2]
        for key, value in schema.items():
            if key not in ("discriminator", "default"):
                yield from _references(value)


def _first_line(operation: Mapping[str, Any]) -> str:
    text = operation.get("description") or operation.get("summary") or ""
    return " ".join(text.split("\n\n")[0].split())


def _body_of(operation: Mapping[str, Any]) -> str | None:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    reference = content.get("schema", {}).get("$ref")
    return None if reference is None else reference.rpartition("/")[2]


def _default(schema: Mapping[str, Any]) -> str:
    default = schema.get("default")
    return "–" if default is None or default in ("", [], {}) else f"`{json.dumps(default)}`"


def _type(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    """Returns a schema's type with its bounds, such as "number ≥ 0", and with a link to an object's section."""
    if "$ref" in schema:
        name = str(schema["$ref"].rpartition("/")[2])
        return f"[{name}](#{name.lower()})" if "properties" in schemas[name] else _type(schemas[name], schemas)
    for word in ("anyOf", "oneOf"):
        if word in schema:
            kinds = (_type(each, schemas) for each in schema[word] if each.get("type") != "null")
            return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"] if each is not None)
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}), schemas)}"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = ", ".join(f"{sign} {_number(schema[name])}" for name, sign in bounds.items() if name in schema)
    return f"{schema.get('type', 'any')} {limits}".strip()


def _number(value: float) -> str:
    powers = {2.0**31: "2^31", -(2.0**31): "-2^31"}
    return powers.get(value) or (f"{int(value):,}" if value == int(value) else str(value))


def metrics_page() -> str:
    """Returns the page of all metrics, under Roost's names and under vLLM's."""
    stats = partial(EngineStats, drafts=DraftCounts(accepted=(0,)))
    metrics = Metrics(stats, tenants=("TENANT",), connections=OpenConnections(1).counts_by_port)
    for collector in (each for feature in load_features() for each in feature.unused_collectors()):
        metrics.registry.register(collector)
    metrics.http.count("PATH", "GET", 200)
    metrics.registry.register(RowCollector(lambda: store_rows({"FEATURE": True})))
    lines = [
        *_head("Metrics"),
        "`/metrics` serves these to Prometheus. [Health, metrics and logs](../how-to/metrics.md) says which of them",
        "to watch.",
        "",
        "## Roost's names",
        "",
        *_metric_rows(metrics.registry, "roost_"),
        "",
        "## HTTP and the process",
        "",
        "Under the names of prometheus-fastapi-instrumentator and of Prometheus' own clients:",
        "",
        *_metric_rows(metrics.registry, ("http_", "process_")),
        "",
        "## vLLM's names",
        "",
        "With `--metrics-compat vllm`, for its dashboards and autoscalers and for the Gateway API Inference Extension:",
        "",
        *_metric_rows(Metrics(stats, vllm_model="MODEL").registry, "vllm:"),
    ]
    return _page(lines)


def _metric_rows(registry: CollectorRegistry, prefix: str | tuple[str, ...]) -> Iterator[str]:
    rows = []
    for metric in sorted(registry.collect(), key=lambda each: each.name):
        if not metric.name.startswith(prefix):
            continue
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        labels = sorted({label for sample in metric.samples for label in sample.labels} - {"le"})
        rows.append(
            row(f"`{name}`", metric.type, ", ".join(f"`{each}`" for each in labels) or "–", metric.documentation)
        )
    return wide_table(row("metric", "type", "labels", "meaning"), rows)


_COMMANDS_START: Final = f"""
# Commands

Every command of `roost`, as `roost COMMAND --help` describes it. `--help` (`-h`) is an option of each. Options that
are [settings](settings.md) are also taken from the environment and from the config file. All commands have the same
[exit statuses](errors.md#exit-statuses-of-commands).

MODEL is {MODEL_HELP[0].lower()}{Text.from_markup(MODEL_HELP[1:]).plain}
"""


def commands_page() -> Iterator[str]:
    """Yields the lines of the page."""
    root: Any = get_command(app)
    yield from (*_COMMANDS_START.splitlines(), *_options(root))
    for path, command in commands(root, "roost"):
        usage = " ".join([path, *command.collect_usage_pieces(typer.Context(command, info_name=path))])
        yield from ("", f"## {path}", "", f"```text\n{usage}\n```", "", inspect.getdoc(command.callback) or "")
        yield from _options(command)


def commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields every command below a group that does something, with the words that call it."""
    for name, command in group.commands.items():
        below = f"{path} {name}"
        yield from commands(command, below) if hasattr(command, "commands") else [(below, command)]


def _options(command: Any) -> Iterator[str]:
    shown = [param for param in command.params if not getattr(param, "hidden", False)]
    own = [param for param in shown if getattr(param, "rich_help_panel", None) is None]
    if len(own) < len(shown):
        yield from ("", "Options are all [settings](settings.md).")
    if own:
        head = row("argument, option", "default", "meaning")
        yield from ("", *wide_table(head, (_option_row(param, command) for param in own)))


def _option_row(param: Any, command: Any) -> str:
    kind = param.metavar or param.display_type(typer.Context(command)).replace(" range", "")
    metavar = "" if getattr(param, "is_flag", False) else kind
    words = [*param.opts, metavar] if param.param_type_name == "option" else [metavar]
    return row(code(" ".join(filter(None, words))), _shown_default(param), _plain(param.help))


def _shown_default(param: Any) -> str:
    if isinstance(param.show_default, str):
        return _plain(param.show_default) or "–"
    if param.required:
        return "required"
    return "–" if param.default in (None, False, "") or not param.show_default else f"`{param.default}`"


def _plain(markup: str | None) -> str:
    return Text.from_markup(markup or "").plain.replace(Text.from_markup(MODEL_HELP).plain, "see [MODEL](#commands).")


def _page(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


PAGES: Final = {
    "settings.md": settings_page,
    "metrics.md": metrics_page,
    "other-servers.md": other_servers_page,
    "commands.md": lambda: _page([_NOTE, *commands_page()]),
    "python.md": lambda: _page([_NOTE, *python_page()]),
}


def main() -> None:
    """Writes every page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder to write to")
    folder: Path = parser.parse_args().folder
    for name, text in ({name: page() for name, page in PAGES.items()} | endpoints_pages()).items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
