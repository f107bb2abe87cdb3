"""Names of settings and their values: on the command line, in the environment and in the config file."""

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic.fields import FieldInfo

PREFIX: Final = "ROOST_"

_ADDRESS: Final = re.compile(r"(?:tcp|udp|sctp)://")
"""Start of the value that Kubernetes gives ROOST_PORT if a Service is called roost."""

_SERVICE_VARIABLE: Final = re.compile(
    r"ROOST_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
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


@dataclass(frozen=True, slots=True)
class Labels:
    """Names each setting as it is written in the source of its value.

    Attributes:
      flags, variables: Names of the settings given on the command line and by environment variables.
      file: Path of the config file; None if there is none.
      in_file: Names of the settings that the file gives.
      flag_label: Returns how a setting's flag is written.
    """

    flags: frozenset[str] = frozenset()
    variables: frozenset[str] = frozenset()
    file: str | None = None
    in_file: frozenset[str] = frozenset()
    flag_label: Callable[[str], str] = flag_name

    def label(self, name: str) -> str:
        """Returns `--slots`, `ROOST_SLOTS` or `config roost.toml: slots`; a default gets the flag's name."""
        if name in self.flags:
            return self.flag_label(name)
        if name in self.variables:
            return variable_name(name)
        if name in self.in_file:
            return f"config {self.file}: {name}"
        return self.flag_label(name)

    def rename(self, text: str, names: Collection[str]) -> str:
        """Replaces the names of settings in a message by their labels."""
        words = "|".join(sorted(names, key=len, reverse=True))
        return re.sub(rf"(?<![\w-])(?:{words})(?![\w-])", lambda found: self.label(found[0]), text)


@dataclass(frozen=True, slots=True)
class Environment:
    """Environment variables that begin with `ROOST_`, sorted.

    Attributes:
      given: Names of the settings that have a value from a variable.
      ignored: Names of the settings whose variable holds a Service's address.
      warnings: One line for each variable that has no effect but looks as if it should.
      mistakes: One line for each variable whose name is almost a setting's.
    """

    given: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()
    mistakes: tuple[str, ...] = ()


def read_environment(names: Collection[str]) -> Environment:
    """Sorts the variables that begin with `ROOST_`, in upper or lower case.

    Args:
      names: Names of all settings.
    """
    given, ignored, warnings, mistakes = set(), set(), [], []
    for variable, value in sorted(os.environ.items()):
        name = variable.upper().removeprefix(PREFIX).lower()
        if not variable.upper().startswith(PREFIX) or _SERVICE_VARIABLE.fullmatch(variable):
            continue
        if _ADDRESS.match(value) and name.endswith("port"):
            warnings.append(_address_warning(variable, name, name in names))
            ignored.add(name)
        elif name in names:
            given.add(name)
        elif meant := closest(name, names):
            mistakes.append(f"{variable} is unknown; did you mean {variable_name(meant)}?")
        else:
            warnings.append(f"{variable} is ignored: there is no such setting; roost serve --help lists them all")
    return Environment(frozenset(given), frozenset(ignored), tuple(warnings), tuple(mistakes))


def _address_warning(variable: str, name: str, is_setting: bool) -> str:
    fix = f"; use {flag_name(name)} or the config file for the setting" if is_setting else ""
    return f"{variable} is ignored: its value is the address that Kubernetes sets for a Service of that name{fix}"


def environment_values(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Returns the values of variables without the addresses that Kubernetes sets for a Service called roost."""
    ignored = read_environment(names).ignored
    return {name: value for name, value in values.items() if name not in ignored}


def variable_value(name: str) -> str | None:
    """Returns the environment variable of one setting, for use before all settings are loaded."""
    return next((value for key, value in os.environ.items() if key.upper() == variable_name(name)), None)


def config_path(flags: Mapping[str, Any]) -> Path | None:
    """Returns the config file that a flag or an environment variable names."""
    path = flags.get("config") or variable_value("config")
    return Path(path) if path else None


def read_file(path: Path | None, settings: Mapping[str, FieldInfo]) -> dict[str, Any]:
    """Reads the config file, if there is one.

    Args:
      path: Path of the file; None gives no values.
      settings: All settings, by their names.

    Raises:
      SettingsError: The file cannot be read, is not valid TOML, or has a key that is not a setting.
    """
    if path is None:
        return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"config {path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise SettingsError(f"config {path}: is not valid TOML ({error})") from None
    known = set(settings) - {"config"}
    if unknown := sorted(content.keys() - known):
        hints = ", ".join(_with_hint(key, content[key], known) for key in unknown)
        raise SettingsError(f"config {path}: unknown setting {hints}")
    for name, value in content.items():
        if isinstance(value, bool) and settings[name].annotation is not bool:  # which pydantic would take for 0 or 1
            raise SettingsError(f"config {path}: {name} must not be {str(value).lower()}, as it is no switch")
    return content


def _with_hint(key: str, value: Any, names: Collection[str]) -> str:
    if isinstance(value, dict):
        return f"[{key}] (write settings without a table)"
    meant = closest(key, names)
    return key if meant is None else f"{key} (did you mean {meant}?)"
