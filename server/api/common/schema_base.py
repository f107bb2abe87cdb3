"""Types and base classes of all schemas.

Null means the same as leaving a field out.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PrivateAttr, Tag, model_validator

from ....engine import MAX_LOGPROBS
from ...validation_errors import path_of
from .field_rules import NO_RULES, FieldRules

MAX_MESSAGES: Final = 16_384
"""Maximum number of messages of a conversation, and of parts of a message. Each takes microseconds."""

MAX_STOP_CHARACTERS: Final = 4096
"""Maximum characters of a stop string or a bad word."""

MAX_FIELDS: Final = 256
"""Maximum number of fields of an object, unknown ones included."""

_MAX_UNNAMED: Final = 100
"""Maximum number of different fields without a name in the schema that a body remembers."""

type Several[T] = Annotated[list[T], Field(fail_fast=True, max_length=MAX_MESSAGES)]
"""A list whose first invalid entry ends validation, or millions of errors would be written down."""

Count = Annotated[int, Field(ge=0, lt=2**31)]
TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


def is_list(value: Any) -> str | None:
    """Returns the tag of a string or a list."""
    return "<text>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None


def _is_object(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<object>" if isinstance(value, dict | BaseModel) else None


def union(discriminate: Any, message: str) -> Discriminator:
    """Returns a discriminator with an error message of its own.

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
    """An object in which null means absent, and whose number of fields is bounded."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if len(data) > MAX_FIELDS:
            raise ValueError(f"an object has {len(data)} fields, and at most {MAX_FIELDS} are allowed")
        return {name: value for name, value in data.items() if value is not None}


CacheSalt = Annotated[str, Field(max_length=256)]
"""Requests share cached states only with those of the same salt."""

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
    value: Any

    @property
    def path(self) -> str:
        """The field's path, such as `messages[0].contnt`."""
        return f"{path_of(self.place)}.{self.name}" if self.place else self.name

    @property
    def param(self) -> str:
        """The field of the body that holds this field."""
        return str(self.place[0]) if self.place else self.name

    @property
    def pattern(self) -> str:
        """The path without indexes, which is the same for all messages of a conversation."""
        return ".".join((*(step for step in self.place if isinstance(step, str)), self.name))


class RequestBody(Fields):
    """A body, which remembers the fields that no schema names.

    They are found when the body is validated, on a worker thread if it is large.
    """

    _unnamed: Sequence[UnnamedField] = PrivateAttr(default=())

    def model_post_init(self, context: Any, /) -> None:
        """Finds the fields that no schema names."""
        found = dict[tuple[type[JsonObject], str], UnnamedField]()
        for field in _unnamed_fields(self, ()):
            if len(found) < _MAX_UNNAMED or field.name in field.kind.field_rules.refused:
                found.setdefault((field.kind, field.name), field)
        self._unnamed = tuple(found.values())

    @property
    def unnamed(self) -> Sequence[UnnamedField]:
        """The first of each of these fields, in the body and in the objects within it."""
        return self._unnamed


def _unnamed_fields(item: JsonObject, place: _Place) -> Iterator[UnnamedField]:
    """Yields fields that are neither ignored nor neutral, those of an object before those within it."""
    kind = type(item)
    rules = kind.field_rules
    if rules.ignores_all:
        return
    for name, value in (item.__pydantic_extra__ or {}).items():
        if rules.has_effect(name, value):
            yield UnnamedField(kind, place, name, value)
    for name, value in item.__dict__.items():
        if isinstance(value, JsonObject):
            yield from _unnamed_fields(value, (*place, name))
        elif isinstance(value, list) and value and isinstance(value[0], JsonObject):
            for index, each in enumerate(value):
                yield from _unnamed_fields(each, (*place, name, index))


class Body(RequestBody):
    """Fields of all bodies."""

    model: str | None = None
    """Name of the served model; any other name is a 404. Every request may leave it out."""


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SchedulingFields(Body):
    """Scheduling parameters of a request, and `return_warnings`. A lower priority goes first, as in vLLM.

    `queue_timeout` limits the time without a slot, `timeout` the whole time. `return_warnings` reports in the body what
    was dropped or ignored of the request.
    """

    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    """Rank among the waiting requests of the same API key: the lowest number gets a slot first, as in vLLM."""

    queue_timeout: Seconds | None = None
    """Maximum seconds without a slot, after which the request gets a 503; no limit by default."""

    timeout: Seconds | None = None
    """Maximum seconds for the whole request, after which it gets a 504. `--request-timeout` is the upper limit."""

    return_warnings: bool = False
    """Whether the response's field `warnings` lists what was dropped or ignored, as `x-roost-warnings` does."""
