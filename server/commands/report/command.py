"""`roost report`: runs all parts and writes their results, or compiles their programs for a chip that isn't here."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from ....engine import EngineConfig, ModelSource, compile_kernel_checks, verify_plan
from ...assembly.service import engine_config
from ...model_hub import find_model
from ...terminal.exits import CommandError
from ..options import ReportOptions
from .page import as_page
from .parts import PARTS, ReportPart, run_apart, say

_PAGE: Final = "report.md"
_FILE: Final = "report.json"
_JSON: Final = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY


def report(options: ReportOptions) -> int:
    """Runs the report, and writes `report.md` and `report.json`; or compiles its programs for a chip.

    Returns:
      1 if a check failed, a part didn't end, or a program does not compile or fit.

    Raises:
      SettingsError, ConfigError: A setting is wrong, or the chip has no compiler here.
      CheckpointError: The model does not exist.
      CommandError: The folder cannot be written.
    """
    settings, folder = options.load(), options.out
    config = engine_config(settings)  # which checks them
    if options.compile_only is not None:
        return _compile(find_model(settings.model), config, options.compile_only)
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


def _compile(source: ModelSource, config: EngineConfig, chip: str) -> int:
    """Compiles the kernels' checks and the served programs, and prints what fails. Returns the exit status."""
    problems = [*_kernels(source, config, chip), *_programs(source, config, chip)]
    for problem in problems:
        print(f"problem: {problem}")
    print(f"{len(problems)} problems" if problems else f"all that a report runs compiles for {chip}")
    return 1 if problems else 0


def _kernels(source: ModelSource, config: EngineConfig, chip: str) -> list[str]:
    failures = []
    for name, failure in compile_kernel_checks(source, config, chip):
        print(f"{name}: {failure or 'compiled'}", file=sys.stderr, flush=True)
        failures += [f"{name}: {failure}"] if failure else []
    return failures


def _programs(source: ModelSource, config: EngineConfig, chip: str) -> list[str]:
    found = verify_plan(source, config, chip, lambda slots, done, total: None)
    print(f"{len(found.programs)} programs of {found.slots} slots: compiled", file=sys.stderr, flush=True)
    return [f"{program.name} does not fit" for program in found.programs if not program.fits]
