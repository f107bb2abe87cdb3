"""Names of settings and their values: on the command line, in the environment and in the config file."""

import difflib
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

PREFIX: Final = "ROOST_"

_ADDRESS: Final = re.compile(r"(?:tcp|udp|sctp)://")
"""Start of the value that Kubernetes gives ROOST_PORT if a Service is called roost."""

_SERVICE_VARIABLE: Final = re.compile(r"ROOST_(\w+_)?(SERVICE_HOST|SERVICE_PORT|PORT_\d+_(TCP|UDP|SCTP))(_\w+)?")
"""Other variables that Kubernetes sets for a Service whose name begins with roost."""

_MIN_SIMILARITY: Final = 0.75
"""Similarity, as difflib's ratio, above which an unknown name counts as a misspelt setting."""


class SettingsError(Exception):
    """A setting cannot be used; the text is one line that names it."""


def flag_name(name: str) -> str:
    """Returns a setting's name on the command line."""
    return "MODEL" if name == "model" else f"--{name.replace('_', '-')}"


def variable_name(name: str) -> str:
    """Returns the environment variable of a setting."""
    return f"{PREFIX}{name.upper()}"


def closest(name: str, names: Collection[str]) -> str | None:
    """Returns the setting that was probably meant by an unknown name, if any."""
    matches = difflib.get_close_matches(name.lower().replace("-", "_"), sorted(names), 1, _MIN_SIMILARITY)
    return next(iter(matches), None)


def rename(text: str, labels: Mapping[str, str]) -> str:
    """Replaces the names of settings in a message by their labels."""
    words = "|".join(sorted(labels, key=len, reverse=True))
    return re.sub(rf"(?<![\w-])(?:{words})(?![\w-])", lambda found: labels[found[0]], text)


def read_environment(names: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Reads the variables that begin with `ROOST_`, in upper or lower case.

    Args:
      names: Names of all settings.

    Returns:
      The values by setting, and one line for each variable that has no effect but looks as if it should.

    Raises:
      SettingsError: The name of a variable is almost a setting's.
    """
    values, warnings = dict[str, str](), list[str]()
    for variable, value in sorted(os.environ.items()):
        name = variable.upper().removeprefix(PREFIX).lower()
        of_kubernetes = _SERVICE_VARIABLE.fullmatch(variable) or (name.endswith("port") and _ADDRESS.match(value))
        if not variable.upper().startswith(PREFIX) or of_kubernetes:
            continue
        if name in names:
            values[name] = value
        elif meant := closest(name, names):
            raise SettingsError(f"{variable} is unknown; did you mean {variable_name(meant)}?")
        else:
            warnings.append(f"{variable} is ignored: there is no such setting; roost serve --help lists them all")
    return values, warnings


def variable_value(name: str) -> str | None:
    """Returns the environment variable of one setting, for use before all settings are loaded."""
    return next((value for key, value in os.environ.items() if key.upper() == variable_name(name)), None)


def read_file(path: str, names: Collection[str]) -> dict[str, Any]:
    """Returns the values in the config file.

    Args:
      path: Path of the file.
      names: Names of all settings.

    Raises:
      SettingsError: The file cannot be read, is not valid TOML, or has a key that is not a setting.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"config {path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise SettingsError(f"config {path}: is not valid TOML ({error})") from None
    known = set(names) - {"config"}
    if unknown := sorted(content.keys() - known):
        hints = ", ".join(_with_hint(key, known) for key in unknown)
        raise SettingsError(f"config {path}: unknown setting {hints}")
    return content


def _with_hint(key: str, names: Collection[str]) -> str:
    meant = closest(key, names)
    return key if meant is None else f"{key} (did you mean {meant}?)"
