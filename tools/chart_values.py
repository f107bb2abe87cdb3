"""Writes what follows from the settings and from the values of the Helm chart.

    python tools/chart_values.py

These are the settings in deploy/chart/values.schema.json, with their types and limits, and
docs/reference/chart-values.md, with the comments of the chart's values.yaml. `tests/deploy/test_values_schema.py` fails
when one differs.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from roost.server.settings import all_settings
from roost.server.settings.reference import setting_reference

_ROOT: Final = Path(__file__).parents[1]
SCHEMA: Final = _ROOT / "deploy" / "chart" / "values.schema.json"

DECIDED_BY_THE_CHART: Final = frozenset(
    {
        *("model", "config", "served_model_name", "host", "port", "admin_port", "metrics_compat", "ssl_certfile"),
        *("ssl_keyfile", "api_key", "api_key_file", "admin_key", "state_key", "mesh", "coordinator", "num_hosts"),
        *("host_index", "compile_cache", "state_cache_gib", "state_cache_dir", "state_cache_dir_gib", "store"),
        *("state_store", "drain_lag", "drain_timeout", "evacuate_seconds"),
    }
)
"""Settings that other values of the chart give, so that `settings` must not."""

_BLOCK: Final = re.compile(r'(?<=\n)    "settings": \{\n.*?\n    \}(?=,\n)', re.DOTALL)
_ABOUT: Final = (
    "Written by `python tools/chart_values.py`. Other values of the chart give the settings that are missing."
)


def settings_block() -> str:
    """Returns the schema of `settings`, with a line for each."""
    properties: dict[str, Any] = all_settings().model_json_schema()["properties"]
    lines = [
        f"        {json.dumps(name)}: {json.dumps(_value_schema(name, schema), ensure_ascii=False)}"
        for name, schema in properties.items()
        if name not in DECIDED_BY_THE_CHART
    ]
    head = (
        f'    "settings": {{\n      "type": "object", "additionalProperties": false,\n      "description": "{_ABOUT}",'
    )
    return f'{head}\n      "properties": {{\n' + ",\n".join(lines) + "\n      }\n    }"


def _value_schema(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of a setting's value in YAML, where null leaves the setting out."""
    kinds = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    alternatives = (setting_reference(name).metavar or "").split("|")
    words: list[str | bool] = [word for word in ("auto", "off") if word in alternatives]
    if "array" in (each["type"] for each in kinds):
        kinds.append({"type": "string"})  # as in a variable
    if kinds[0]["type"] != "boolean" and words:
        words += [False] if "off" in words else []  # YAML reads the word off so
        return {"anyOf": [*map(_without_names, kinds), {"enum": [*words, None]}]}
    return {"anyOf": [*map(_without_names, kinds), {"type": "null"}]} if kinds[1:] else _nullable(kinds[0])


def _without_names(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in ("default", "description", "title")}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a schema that takes null, too; not by `anyOf`, of which helm would report every branch."""
    nullable = _without_names(schema) | {"type": [schema["type"], "null"]}
    values = nullable.pop("enum", None) or ([nullable.pop("const")] if "const" in nullable else [])
    return nullable | ({"enum": [*values, None]} if values else {})


def schema_text() -> str:
    """Returns the whole schema with the settings of today."""
    return _BLOCK.sub(lambda _: settings_block(), SCHEMA.read_text(), count=1)


# --- the page

PAGE: Final = _ROOT / "docs" / "reference" / "chart-values.md"

_KEY: Final = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z]\w*):")
_HEAD: Final = """\
<!-- Written by `python tools/chart_values.py`; change deploy/chart/values.yaml instead. -->

# Values of the Helm chart

`values.schema.json` refuses names that are not here, and values of another type or beyond a limit. Names below
`settings` are those of [Settings](settings.md). [Kubernetes](../how-to/kubernetes.md) says what to set when.
"""


def read_comments(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the comments of a values file, by the path of the key that follows.

    Args:
      text: The file, as `deploy/chart/values.yaml` is written: with two spaces for each level.

    Returns:
      Comments directly above a key, and those that an empty line separates from it.
    """
    about: dict[str, str] = {}
    before: dict[str, str] = {}
    path: list[str] = []
    comment, paragraph = "", ""
    for line in text.splitlines():
        if line.lstrip().startswith("# "):
            comment = f"{comment} {line.lstrip()[2:]}".strip()
        elif not line.strip():
            paragraph, comment = f"{paragraph} {comment}".strip(), ""
        elif found := _KEY.match(line):
            path = [*path[: len(found["indent"]) // 2], found["key"]]
            about[".".join(path)], before[".".join(path)] = comment, paragraph
            comment, paragraph = "", ""
    return about, before


def leaves(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields each key with its default; a mapping that is not empty has `...` instead, and its keys follow."""
    for key, value in values.items():
        is_mapping = isinstance(value, dict) and value != {}
        yield f"{path}{key}", ... if is_mapping else value
        if is_mapping:
            yield from leaves(value, f"{path}{key}.")


def page_text() -> str:
    """Returns the page."""
    text = (_ROOT / "deploy" / "chart" / "values.yaml").read_text()
    about, before = read_comments(text)
    lines = [_HEAD]
    first = next(iter(about))  # behind what is said of the whole file
    is_open = False
    for path, default in leaves(yaml.safe_load(text)):
        if before.get(path) and path != first:
            lines += [*(["", "</div>", ""] if is_open else []), before[path], ""]
            is_open = False
        if default is ... and not about.get(path):
            continue
        if not is_open:
            lines += ['<div class="wide" markdown>', "", "| value | default | meaning |", "| --- | --- | --- |"]
            is_open = True
        lines.append(_row(path, default, about.get(path, "")))
    return "\n".join([*lines, "", "</div>"]) + "\n"


def _row(path: str, default: Any, meaning: str) -> str:
    shown = "" if default is ... else f"`{json.dumps(default)}`"
    return f"| `{path}` | {shown} | {meaning.replace('|', '&#124;')} |"


def main() -> None:
    """Writes the schema and the page."""
    SCHEMA.write_text(schema_text())
    PAGE.write_text(page_text())


if __name__ == "__main__":
    main()
