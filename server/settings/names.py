"""Names of settings on the command line, in the environment and in the config file, and near misses of them."""

import difflib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

PREFIX: Final = "ROOST_"

_MIN_SIMILARITY: Final = 0.75
"""Similarity, as difflib's ratio, above which an unknown name counts as a misspelt setting."""


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
