"""Lists every setting with its names, type, default and description, for `--help` and for documentation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from .fields import Group, Option, plain_type
from .settings import all_settings
from .sources import flag_name, variable_name


@dataclass(frozen=True, slots=True)
class SettingReference:
    """Describes a setting.

    Attributes:
      name: Name in the config file.
      flag: Name on the command line.
      variable: Environment variable.
      kind: Type to which the command line converts a value before it is checked; `bool` makes the flag a switch.
      metavar: Placeholder of the value; None shows the type.
      default: Description of the default; empty if there is none.
      help: Description in plain text.
      group: Title under which `--help` lists the setting.
      values: Valid words, for completion in a shell; empty if other values are valid, too.
    """

    name: str
    flag: str
    variable: str
    kind: Any
    metavar: str | None
    default: str
    help: str
    group: str
    values: tuple[str, ...]


def settings_reference() -> tuple[SettingReference, ...]:
    """Returns every setting, in the order of `--help`."""
    settings = [setting_reference(name) for name in all_settings().model_fields]
    groups = list(dict.fromkeys([*Group, *(each.group for each in settings)]))
    return tuple(sorted(settings, key=lambda each: groups.index(each.group)))


def setting_reference(name: str) -> SettingReference:
    """Returns the description of one setting."""
    field = all_settings().model_fields[name]
    option = next(each for each in field.metadata if isinstance(each, Option))
    return SettingReference(
        name=name,
        flag=flag_name(name),
        variable=variable_name(name),
        kind=_kind(field, option),
        metavar=option.metavar,
        default=_shown_default(field.default) if option.default is None else option.default,
        help=" ".join((field.description or "").split()),
        group=option.group,
        values=_values(field, option),
    )


def _kind(field: FieldInfo, option: Option) -> Any:
    if "|" in (option.metavar or ""):
        return str
    kind = plain_type(field.annotation)
    if get_origin(kind) is tuple:
        return list[str]
    return kind if kind in (bool, int, float, Path) else str


def _shown_default(value: Any) -> str:
    if value is None or value is False or value == ():
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(field: FieldInfo, option: Option) -> tuple[str, ...]:
    """Returns the values of a literal, and the words among a placeholder's alternatives, such as "off"."""
    members = (field.annotation, *get_args(field.annotation))
    literals = (value for each in members if get_origin(each) is Literal for value in get_args(each))
    alternatives = (option.metavar or "").split("|") if "|" in (option.metavar or "") else ()
    words = (*literals, *(word for word in alternatives if word.islower() and word.isalpha()))
    return tuple(dict.fromkeys(map(str, words)))
