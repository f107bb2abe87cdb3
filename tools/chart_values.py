"""Writes docs/reference/chart-values.md: the values of the Helm chart, with the comments of its values.yaml.

    python tools/chart_values.py

`tests/deploy/test_values_schema.py` fails when the page differs.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

_ROOT: Final = Path(__file__).parents[1]
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
    """Writes the page."""
    PAGE.write_text(page_text())


if __name__ == "__main__":
    main()
