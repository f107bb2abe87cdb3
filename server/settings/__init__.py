"""Settings of `roost serve`: their declarations, the sources of their values, and their names in errors.

`settings.py` declares each setting of the core once, and a feature's `settings.py` the feature's settings. Flags,
environment variables, keys of the config file, `--help` and the settings reference follow from that declaration.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors.validation_errors import describe
from .fields import is_secret
from .settings import Settings, all_settings
from .sources import (
    SettingsError,
    flag_name,
    read_environment,
    read_file,
    rename,
    variable_name,
    variable_value,
)

__all__ = [
    "Settings",
    "SettingsError",
    "all_settings",
    "flag_name",
    "is_json_wanted",
    "load_settings",
]


def load_settings(flags: Mapping[str, Any], flag_label: Callable[[str], str] = flag_name) -> Settings:
    """Gathers the settings from flags, the environment and the config file.

    Args:
      flags: Values from the command line, by the setting's name. None and empty lists are flags that were not given.
      flag_label: Returns how errors name the flag of a setting.

    Raises:
      SettingsError: A value cannot be used; the file is missing, broken or has an unknown key; or an environment
        variable's name is almost a setting's.
    """
    names = all_settings().model_fields
    given = {name: value for name, value in flags.items() if value not in (None, [], ())}
    variables, warnings = read_environment(names)
    path = given.get("config") or variables.get("config")
    in_file = {} if path is None else read_file(path, names)
    labels = {
        **{name: flag_label(name) for name in names},
        **{name: f"config {path}: {name}" for name in in_file},
        **{name: variable_name(name) for name in variables},
        **{name: flag_label(name) for name in given},
    }
    try:
        settings = all_settings()(**in_file | variables | given)
    except ValidationError as error:
        raise SettingsError(_error_line(error, labels)) from None
    settings.remember_sources(labels, warnings)
    return settings


def is_json_wanted(log_format: str | None) -> bool:
    """Returns whether the flag or its variable selects JSON, for errors that occur before the settings are loaded."""
    return "json" in (log_format, variable_value("log_format"))


def _error_line(error: ValidationError, labels: Mapping[str, str]) -> str:
    """Joins one sentence for each setting that is wrong; a union's several errors count once."""
    first: dict[str, str] = {}
    for detail in error.errors():
        first.setdefault(str(detail["loc"][:1]), _sentence(detail, labels))
    return "; ".join(first.values())


def _sentence(detail: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Returns a sentence that begins with the label of the setting that is wrong."""
    rule = str(detail["msg"]).removeprefix("Value error, ")
    if not detail["loc"]:
        return rename(rule, labels)
    name = str(detail["loc"][0])
    if detail["type"] == "value_error":
        detail = {**detail, "type": "wrong_kind", "msg": rule}
    text = describe({**detail, "input": _as_written(detail["input"])}, ())
    return labels.get(name, name) + (text.partition(", got ")[0] if _must_hide(name) else text)


def _must_hide(name: str) -> bool:
    field = all_settings().model_fields.get(name)
    return field is not None and is_secret(field.annotation)


def _as_written(value: Any) -> Any:
    """Returns the value of a flag or a variable as the user wrote it: a path as text, a number without quotes."""
    if isinstance(value, Path):
        return str(value)
    is_number = isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value)
    return int(value) if is_number else value
