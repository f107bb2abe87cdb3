"""Types of setting values, and the command-line option that each setting carries."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import NoneType
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

_MAX_DEVICES_PER_AXIS: Final = 64


class Group(StrEnum):
    """Titles under which `roost serve --help` lists its options, in this order."""

    COMMON = "Most used"
    MODEL = "Model"
    CAPACITY = "Capacity"
    DEVICES = "Devices and hosts"
    HTTP = "HTTP"
    SECURITY = "Security"
    CACHE = "Cache"
    STORE = "Stored responses"
    SHUTDOWN = "Timeouts and shutdown"
    LOGS = "Logs and metrics"


@dataclass(frozen=True, slots=True)
class Option:
    """Describes a setting in `--help` and in the settings reference, with the docstring of its field.

    Attributes:
      group: Title under which the option is listed: a `Group`, or a title of a feature, which is listed last.
      metavar: Placeholder of the value; None shows its type. A placeholder with alternatives, such as "auto|N", makes
        the command line accept any text.
      default: Description of the default, for a value that needs an explanation.
    """

    group: str
    metavar: str | None = None
    default: str | None = None


def _none_if(*words: str) -> BeforeValidator:
    return BeforeValidator(lambda value: None if value in words else value)


AUTO: Final = _none_if("auto")
"""Reads the word "auto" as None."""

OFF: Final = _none_if("off", "false")
"""Reads the word "off" as None, and also "false", to which YAML converts it."""


def _check_local_folder(value: Any) -> Any:
    """Refuses a bucket's address, which `Path` would read as a relative folder called `gs:`."""
    if re.match(r"[a-z][a-z0-9]+:/", str(value)):
        raise ValueError("must be a folder; mount the bucket, as by GCS FUSE, and name the folder it is mounted on")
    return value


LOCAL_FOLDER: Final = BeforeValidator(_check_local_folder)


def _split(value: Any) -> Any:
    """Splits the text of an environment variable at commas and spaces. No list setting has either within an item."""
    return value.replace(",", " ").split() if isinstance(value, str) else value


def _check_not_empty(value: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuses an empty variable, so that a missing secret does not leave the server without access control."""
    if not value:
        raise ValueError("must not be empty")
    return value


def mesh_sizes(value: str) -> tuple[int, int] | None:
    """Parses a mesh such as "data=2,model=4".

    Returns:
      Number of devices along the data axis and along the model axis, or None for "auto".

    Raises:
      ValueError: The text is not a mesh.
    """
    if value == "auto":
        return None
    sizes = {"data": 1, "model": 1}
    for part in value.split(","):
        name, _, size = part.partition("=")
        if name.strip() not in sizes or not size.strip().isdecimal() or not 1 <= int(size) <= _MAX_DEVICES_PER_AXIS:
            raise ValueError("must be auto, or like data=2,model=4")
        sizes[name.strip()] = int(size)
    return sizes["data"], sizes["model"]


def _check_store(value: SecretStr) -> SecretStr:
    from ..database.address import StoreAddress  # which imports the engine, and with it JAX

    StoreAddress.parse(value.get_secret_value())
    return value


def _check_mesh(value: str) -> str:
    mesh_sizes(value)
    return value


Port = Annotated[int, Field(ge=0, le=65535)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Store = Annotated[SecretStr, AfterValidator(_check_store)]
Mesh = Annotated[str, AfterValidator(_check_mesh)]
Words = Annotated[tuple[str, ...], BeforeValidator(_split)]
Names = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_split), AfterValidator(_check_not_empty)
]
Secrets = Annotated[tuple[SecretStr, ...], BeforeValidator(_split), AfterValidator(_check_not_empty)]


def plain_type(annotation: Any) -> Any:
    """Returns an annotation without None and `Annotated`; a union gives its first member, a literal `str`."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return str
    if origin is Annotated:
        return plain_type(members[0])
    if NoneType in members:
        return plain_type(next(each for each in members if each is not NoneType))
    return plain_type(members[0]) if members and origin is not tuple else annotation


def is_secret(annotation: Any) -> bool:
    """Returns whether a field's values must never be shown."""
    kind = plain_type(annotation)
    return kind is SecretStr or SecretStr in get_args(kind)


_SPECULATION_NUMBERS: Final = ("num_speculative_tokens", "prompt_lookup_min", "prompt_lookup_max")


def _parse_speculation(value: Any) -> dict[str, Any] | None:
    """Returns the keys of a JSON object, or of a table of the config file; None for `null`.

    Raises:
      ValueError: The value is not an object, the method or a key is unknown, or a number is not whole.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError('must be JSON, such as {"method": "ngram"}') from None
    if value is None:
        return None
    if not isinstance(value, Mapping) or value.get("method") != "ngram":
        raise ValueError('must be an object with "method": "ngram", or null')
    for name, number in value.items():
        if name == "method":
            continue
        if name not in _SPECULATION_NUMBERS:
            raise ValueError(f"has an unknown key {name!r}; the keys are method, {', '.join(_SPECULATION_NUMBERS)}")
        if not isinstance(number, int) or isinstance(number, bool):
            raise ValueError(f"{name} must be a whole number, got {number!r}")
    return dict(value)


SpeculativeConfig = Annotated[dict[str, Any] | None, BeforeValidator(_parse_speculation)]
"""Object with `method` and optional `_SPECULATION_NUMBERS`, or None."""
