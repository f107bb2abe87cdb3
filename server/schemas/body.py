"""Bodies of requests: the types and base classes of all schemas, and the check of what no schema names.

Null is equivalent to omitting a field. A body that fits its schema may still name another model, or fields that are
unknown or have no effect here.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache, lru_cache
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Final, NamedTuple, get_args, get_origin

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import PydanticKnownError

from ...engine import MAX_LOGPROBS
from ..errors.request_errors import ApiError, bad_value, refusal, unknown_model, warn
from ..errors.validation_errors import ClientName, ForeignName, path_of
from .field_rules import NO_RULES, FieldRules

MAX_MESSAGES: Final = 16_384
"""Maximum number of messages of a conversation, and of parts of a message. Each takes microseconds."""

MAX_STOP_CHARACTERS: Final = 4096
"""Maximum characters of a stop string or a bad word."""

MAX_FIELDS: Final = 256
"""Maximum number of fields of an object, unknown ones included."""

type Several[T] = Annotated[list[T], Field(fail_fast=True, max_length=MAX_MESSAGES)]
"""A list whose first invalid entry ends validation. Otherwise millions of errors might be collected."""

Count = Annotated[int, Field(ge=0, lt=2**31)]

TokenId = Annotated[int, Field(ge=0)]

TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]

TopLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


def is_list(value: Any) -> str | None:
    """Returns the tag of a string or a list."""
    return "<text>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None


def _is_object(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<object>" if isinstance(value, dict | BaseModel) else None


def type_of(value: Any) -> str | None:
    """Returns the type that an object of a body names, if it does, before or after its validation."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if isinstance(kind, str) else None


def union(discriminate: Any, message: str) -> Discriminator:
    """Returns a discriminator with a custom error message.

    Args:
      discriminate: Returns the tag of a value, or None.
    """
    return Discriminator(discriminate, custom_error_type="wrong_kind", custom_error_message=message)


Text = Annotated[str, Tag("<text>")]

TEXT_OR_OBJECT: Final = union(_is_object, "must be a string or an object")
"""Discriminator of a string tagged `<text>` and a model tagged `<object>`."""

TEXT_OR_LIST: Final = union(is_list, "must be a string or an array")
"""Discriminator of `Text` and a list tagged `<list>`."""


class JsonObject(BaseModel):
    """An object of which a body may have thousands, such as a message.

    Attributes:
      field_rules: Rules for the fields that the schema does not name.
    """

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, use_attribute_docstrings=True)

    field_rules: ClassVar[FieldRules] = NO_RULES


class Fields(JsonObject):
    """An object in which null means absent and 16.0 means 16, and whose number of fields is bounded."""

    @model_validator(mode="before")
    @classmethod
    def _normalized(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if len(data) > MAX_FIELDS:
            raise ValueError(f"an object has {len(data)} fields, and at most {MAX_FIELDS} are allowed")
        return {name: _with_whole_numbers(value) for name, value in data.items() if value is not None}


def _with_whole_numbers(value: Any) -> Any:
    """Returns a number, or the numbers in lists, as integers if they are whole: JSON Schema's integers include 16.0."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if not isinstance(value, list) or not value or not {*map(type, value)} & {float, list}:
        return value
    return [_with_whole_numbers(each) for each in value]


CacheSalt = Annotated[str, Field(max_length=256)]
"""Name of a separate prefix cache: requests share cached states only with the same salt."""


_MAX_PAIRS: Final = 16
"""Maximum number of pairs of metadata."""


def _few_pairs(value: Any) -> Any:
    """Checks the number of pairs before the pairs, since each invalid pair would become a separate error."""
    if isinstance(value, dict) and len(value) > _MAX_PAIRS:
        sizes = {"field_type": "Dictionary", "max_length": _MAX_PAIRS, "actual_length": len(value)}
        raise PydanticKnownError("too_long", sizes)
    return value


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    BeforeValidator(_few_pairs),
    Field(max_length=_MAX_PAIRS),
]
"""Metadata that clients store with objects, within OpenAI's limits: 16 names and values, of at most 64 and 512
characters."""


class Body(Fields):
    """Fields of all bodies."""

    model: str | None = None
    """Name of the served model; any other name is a 404. Every request may leave it out."""


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SchedulingFields(Body):
    """Scheduling parameters of a request. A lower priority goes first, as in vLLM.

    `queue_timeout` limits the time without a slot, `timeout` the whole time.
    """

    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    """Rank among the waiting requests of the same API key: the lowest number gets a slot first, as in vLLM."""

    queue_timeout: Seconds | None = None
    """Maximum seconds without a slot, after which the request gets a 503; no limit by default."""

    timeout: Seconds | None = None
    """Maximum seconds for the whole request, after which it gets a 504. `--request-timeout` is the upper limit."""


_MAX_UNNAMED: Final = 100
"""Maximum number of different fields missing from the schema that are examined, in addition to refused ones."""

_MIN_NEAR_MISS: Final = 6
"""Minimum letters of an unknown name that is refused because it is almost a known one."""

_MAX_NAME: Final = 60
"""Maximum characters of a name that is compared with known ones."""

_USED_FIELD: Final = re.compile(r"use (\w+)[\w. ]*")
"""An alternative that is a field of the same body."""

type _Place = tuple[str | int, ...]
"""Names and indexes that lead from a body to an object within it."""


class UnnamedField(NamedTuple):
    """A field that the schema of its object does not name, and that may have an effect elsewhere.

    Attributes:
      kind: Schema of the object.
      place: Place of the object; empty for the body.
    """

    kind: type[JsonObject]
    place: _Place
    name: str

    @property
    def path(self) -> str:
        """The field's path, such as `messages[0].contnt`."""
        return f"{path_of(self.place)}.{self.name}" if self.place else self.name

    @property
    def param(self) -> str:
        """The field of the body that holds this field."""
        return str(self.place[0]) if self.place else self.name


class BodyCheck:
    """Refuses other models, fields without effect and near misses; reports unknown names in a header.

    It runs where a body is parsed, on a worker thread if the body is large.

    Args:
      names: Names of the served model.
      strict: Whether all unknown names are refused.
    """

    def __init__(self, names: Sequence[str], *, strict: bool = False) -> None:
        self._names = tuple(names)
        self._strict = strict

    def built(self, model: type[JsonObject], parsed: Any) -> JsonObject:
        """Returns a parsed body as its model, checked.

        Raises:
          ApiError: The body does not fit the model, or does not pass the check.
        """
        try:
            body = model.model_validate(parsed)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            raise refusal(detail, _place_of(detail), parsed) from None
        self(body)
        return body

    def __call__(self, body: JsonObject) -> None:
        """Checks a body and the objects within it.

        Raises:
          ApiError: The model is another one, a field would change the response and has no effect here, or a field is
            unknown and is either almost a known one or found by a strict check.
        """
        if isinstance(body, Body) and body.model is not None and body.model not in self._names:
            raise unknown_model(body.model, self._names)
        fields = _unnamed_fields(body)
        for field in fields:
            if (rule := field.kind.field_rules.names.get(field.name)) is not None:
                raise _refused(field, rule)
        for field in fields:
            meant = near_miss(field.kind, field.name)
            if self._strict or meant is not None:
                hint = "" if meant is None else f"; did you mean {meant}?"
                raise bad_value(field.param, f"the field {field.path[:120]!r} is unknown{hint}")
            warn(field.path)


def _place_of(detail: Mapping[str, Any]) -> _Place:
    """Returns the place of an error. Names that the client chose are `ClientName`s.

    Args:
      detail: Entry of pydantic's `errors()`.
    """
    place: list[str | int] = list(detail["loc"])
    for index, (parent, name) in enumerate(pairwise(place), 1):
        if parent in _mappings():
            place[index] = ClientName(name)
    if detail["type"] == "extra_forbidden":
        place[-1] = ClientName(place[-1])
    return tuple(place)


def _unnamed_fields(body: JsonObject) -> Sequence[UnnamedField]:
    """Returns the first of each field that no schema names, in a body and in the objects within it."""
    found = dict[tuple[type[JsonObject], str], UnnamedField]()
    for field in _all_unnamed(body, ()):
        if len(found) < _MAX_UNNAMED or field.name in field.kind.field_rules.names:
            found.setdefault((field.kind, field.name), field)
    return tuple(found.values())


def _all_unnamed(item: JsonObject, place: _Place) -> Iterator[UnnamedField]:
    """Yields fields that are neither ignored nor neutral. An object's fields precede those of objects within it."""
    kind = type(item)
    rules = kind.field_rules
    if rules.ignores_all:
        return
    for name, value in (item.__pydantic_extra__ or {}).items():
        if rules.has_effect(name, value):
            yield UnnamedField(kind, place, name)
    for name, value in item.__dict__.items():
        if isinstance(value, JsonObject):
            yield from _all_unnamed(value, (*place, name))
        elif isinstance(value, list) and value and isinstance(value[0], JsonObject):
            for index, each in enumerate(value):
                yield from _all_unnamed(each, (*place, name, index))


def _names_of(kind: type[JsonObject]) -> set[str]:
    """Returns the fields that a schema names."""
    return {field.alias or name for name, field in kind.model_fields.items()}


@lru_cache(maxsize=1024)
def near_miss(kind: type[JsonObject], name: str) -> str | None:
    """Returns the field of an object that almost has this name, unless another API has a field of this name."""
    if not _MIN_NEAR_MISS <= len(name) <= _MAX_NAME or name in _all_names():
        return None
    likeness = 1 - 1.1 / len(name)  # of two names that differ in one letter
    return next(iter(get_close_matches(name, _names_of(kind), 1, likeness)), None)


@cache
def _all_names() -> frozenset[str]:
    """Returns the fields of all APIs, and the fields of other servers that rules name."""
    return frozenset(name for kind in _all_kinds() for name in (*_names_of(kind), *kind.field_rules.names))


def _all_kinds() -> Sequence[type[JsonObject]]:
    """Returns the schemas of all objects of all APIs."""
    kinds: list[type[JsonObject]] = [JsonObject]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return kinds


@cache
def _mappings() -> frozenset[str]:
    """Returns the fields whose values are objects with names that clients choose."""
    return frozenset(
        field.alias or name
        for kind in _all_kinds()
        for name, field in kind.model_fields.items()
        if any(get_origin(part) is dict for part in (field.annotation, *get_args(field.annotation)))
    )


def _refused(field: UnnamedField, rule: ForeignName) -> ApiError:
    """Returns the error for a field with an effect. An alternative that the body lacks is one of chat completions."""
    values = " or ".join(orjson.dumps(value).decode() for value in rule.neutral)
    leave_out = f"leave it out, or send {values}" if values else "leave it out"
    used = _USED_FIELD.fullmatch(rule.instead)
    is_elsewhere = used and not field.place and used[1] not in field.kind.model_fields
    instead = f"{rule.instead} in /v1/chat/completions" if is_elsewhere else rule.instead
    return bad_value(field.param, f"{field.path} is not supported: {instead or leave_out}")
