"""Writes the settings into the schema of the Helm chart's values: their names, types and limits.

    python tools/chart_schema.py

`tests/deploy/test_values_schema.py` fails when deploy/chart/values.schema.json differs from the settings.
"""

import json
import re
from pathlib import Path
from typing import Any, Final

from roost.server.settings import all_settings, setting_reference

FILE: Final = Path(__file__).parents[1] / "deploy" / "chart" / "values.schema.json"

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
    "Written by `python tools/chart_schema.py`. Other values of the chart give the settings that are missing."
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
    words: list[str | bool] = [word for word in ("auto", "off") if word in _alternatives(name)]
    if "array" in (each["type"] for each in kinds):
        kinds.append({"type": "string"})  # as in a variable
    if kinds[0]["type"] != "boolean" and words:
        words += [False] if "off" in words else []  # YAML reads the word off so
        return {"anyOf": [*map(_without_names, kinds), {"enum": [*words, None]}]}
    return {"anyOf": [*map(_without_names, kinds), {"type": "null"}]} if kinds[1:] else _nullable(kinds[0])


def _alternatives(name: str) -> list[str]:
    return (setting_reference(name).metavar or "").split("|")


def _without_names(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in ("default", "description", "title")}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a schema that takes null, too; not by `anyOf`, of which helm would report every branch."""
    nullable = _without_names(schema) | {"type": [schema["type"], "null"]}
    values = nullable.pop("enum", None) or ([nullable.pop("const")] if "const" in nullable else [])
    return nullable | ({"enum": [*values, None]} if values else {})


def schema_text() -> str:
    """Returns the whole schema with the settings of today."""
    return _BLOCK.sub(lambda _: settings_block(), FILE.read_text(), count=1)


def main() -> None:
    """Writes the schema."""
    FILE.write_text(schema_text())


if __name__ == "__main__":
    main()
