"""How people write the names of settings, on the command line, in the environment and in a file, and how they miss."""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

PREFIX: Final = "ROOST_"

_LIKENESS: Final = 0.75
"""Share of equal characters from which an unknown name counts as a misspelt one; difflib's ratio."""

_ADDRESS: Final = re.compile(r"(?:tcp|udp|sctp)://")
"""Start of what Kubernetes puts into ROOST_PORT where a Service is called roost."""

_SERVICE_VARIABLE: Final = re.compile(
    r"ROOST_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
"""The other variables that Kubernetes makes for a Service whose name begins with roost."""


@dataclass(frozen=True, slots=True)
class Environment:
    """The environment variables that begin with `ROOST_`, sorted out.

    Attributes:
      given: names of the settings that a variable gives a value to.
      ignored: names of the settings whose variable holds a Service's address.
      warnings: one line for each variable that has no effect but looks as if it should.
      mistakes: one line for each variable whose name is almost a setting's.
    """

    given: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()
    mistakes: tuple[str, ...] = ()


def read_environment(environment: Mapping[str, str], names: Collection[str]) -> Environment:
    """Sorts out the variables that begin with `ROOST_`, in upper or lower case.

    Args:
      names: of all settings.
    """
    given, ignored, warnings, mistakes = set(), set(), [], []
    for variable, value in sorted(environment.items()):
        name = variable.upper().removeprefix(PREFIX).lower()
        if not variable.upper().startswith(PREFIX) or _SERVICE_VARIABLE.fullmatch(variable):
            continue
        if _ADDRESS.match(value) and name.endswith("port"):
            warnings.append(_about_address(variable, name in names))
            ignored.add(name)
        elif name in names:
            given.add(name)
        elif meant := closest(name, names):
            mistakes.append(f"{variable} is unknown; did you mean {PREFIX}{meant.upper()}?")
        else:
            warnings.append(f"{variable} is ignored: there is no such setting; roost serve --help lists them all")
    return Environment(frozenset(given), frozenset(ignored), tuple(warnings), tuple(mistakes))


def _about_address(variable: str, is_setting: bool) -> str:
    flag = variable.upper().removeprefix(PREFIX).lower().replace("_", "-")
    fix = f"; use --{flag} or the config file for the setting" if is_setting else ""
    return f"{variable} is ignored: its value is the address that Kubernetes sets for a Service of that name{fix}"


def closest(name: str, names: Collection[str]) -> str | None:
    """Returns the setting that an unknown name was probably meant to be, if any."""
    return next(iter(difflib.get_close_matches(name.lower().replace("-", "_"), sorted(names), 1, _LIKENESS)), None)


def unknown_keys(content: Mapping[str, Any], names: Collection[str]) -> str:
    """Returns a list of a file's keys that are no settings, each with a hint; empty if there are none."""
    return ", ".join(_with_hint(key, content[key], names) for key in sorted(content.keys() - set(names)))


def _with_hint(key: str, value: Any, names: Collection[str]) -> str:
    if isinstance(value, dict):
        return f"[{key}] (write settings without a table)"
    meant = closest(key, names)
    return key if meant is None else f"{key} (did you mean {meant}?)"


@dataclass(frozen=True, slots=True)
class Labels:
    """Where each setting got its value from, as its name is written there.

    Attributes:
      flags, variables: names of the settings given on the command line and by environment variables.
      file: the config file that gives the others; None where there is none.
      in_file: names of the settings that the file gives.
    """

    flags: frozenset[str] = frozenset()
    variables: frozenset[str] = frozenset()
    file: str | None = None
    in_file: frozenset[str] = field(default=frozenset())

    def label(self, name: str) -> str:
        """Returns `--slots`, `ROOST_SLOTS` or `config roost.toml: slots`; of a default, the flag's name."""
        if name in self.flags:
            return flag_name(name)
        if name in self.variables:
            return f"{PREFIX}{name.upper()}"
        if name in self.in_file:
            return f"config {self.file}: {name}"
        return flag_name(name)

    def rename(self, text: str, names: Collection[str]) -> str:
        """Returns a message about settings with their names as whoever started the server wrote them."""
        words = "|".join(sorted(names, key=len, reverse=True))
        return re.sub(rf"(?<![\w-])(?:{words})(?![\w-])", lambda found: self.label(found[0]), text)


def flag_name(name: str) -> str:
    """Returns the name on the command line."""
    return "MODEL" if name == "model" else f"--{name.replace('_', '-')}"
