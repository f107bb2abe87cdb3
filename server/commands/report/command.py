"""`roost report`: runs all parts and writes their results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from ...assembly.service import engine_config
from ...terminal.exits import CommandError
from ..options import ReportOptions
from .page import as_page
from .parts import PARTS, ReportPart, run_apart, say

_PAGE: Final = "report.md"
_FILE: Final = "report.json"
_JSON: Final = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY


def report(options: ReportOptions) -> int:
    """Runs the report, and writes `report.md` and `report.json`.

    Returns:
      1 if a check failed or a part didn't end.

    Raises:
      SettingsError, ConfigError: A setting is wrong.
      CommandError: The folder cannot be written.
    """
    settings, folder = options.load(), options.out
    engine_config(settings)  # which checks them
    options = options.without(settings.without_kernels)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, _document({}, options))
    except OSError as error:
        raise CommandError(f"--out {folder}: {error.strerror}") from None
    document = _run(options, folder)
    for problem in document["problems"]:
        say(f"problem: {problem}")
    say(f"{folder / _PAGE} and {folder / _FILE} are written. Please send both: docs/how-to/benchmark.md says how.")
    return 1 if document["problems"] else 0


def _run(options: ReportOptions, folder: Path) -> Mapping[str, Any]:
    """Runs the parts in turn, and writes the results so far after each part."""
    found: dict[str, Any] = {}
    document = _document(found, options)
    for part in PARTS:
        if options.quick and not part.in_quick:
            continue
        say(f"{part.title} …")
        found[part.name] = run_apart(part, options)
        say(_outcome(part, found[part.name]))
        options = options.without(tuple(found[part.name].get("wrong_kernels", ())))
        document = _document(found, options)
        _write(folder, document)
    return document


def _document(found: Mapping[str, Any], options: ReportOptions) -> Mapping[str, Any]:
    titles = {part.name: part.title for part in PARTS}
    problems = [problem for part in found.values() for problem in part.get("problems", ())]
    problems += [f"{titles[name]}: {part['error']}" for name, part in found.items() if "error" in part]
    return {
        "settings": {"model": options.model, **options.given()},
        "is_quick": options.quick,
        "without_kernels": options.without_kernels,
        "problems": problems,
        "parts": dict(found),
    }


def _write(folder: Path, document: Mapping[str, Any]) -> None:
    (folder / _FILE).write_bytes(orjson.dumps(document, option=_JSON))
    (folder / _PAGE).write_text(as_page(document), encoding="utf-8")


def _outcome(part: ReportPart, found: Mapping[str, Any]) -> str:
    count = len(found.get("problems", ())) + ("error" in found)
    return f"{part.title}: {'right' if not count else f'{count} problems'}, {found['seconds']:.0f} s"
