"""Types and base classes of all schemas.

Null is equivalent to omitting a field.
"""

from typing import Annotated, Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from ...engine import MAX_LOGPROBS
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


_MEDIA: Final = frozenset(
    {"audio_url", "document", "file", "image", "image_url", "input_audio", "input_file", "input_image", "video_url"}
)
"""Types of parts that are not text, in the APIs of OpenAI, Anthropic and vLLM."""


class TextOnly(JsonObject):
    """A part of a message where other servers also accept images, audio and files."""

    @model_validator(mode="before")
    @classmethod
    def _check_text(cls, data: Any) -> Any:
        kind = data.get("type") if isinstance(data, dict) else None
        if isinstance(kind, str) and kind in _MEDIA:
            raise ValueError(f"the model reads text, and no {kind}")
        return data


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


class Body(Fields):
    """Fields of all bodies."""

    model: str | None = None
    """Name of the served model; any other name is a 404. Every request may leave it out."""


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SchedulingFields(Body):
    """Scheduling parameters of a request, and `return_warnings`. A lower priority goes first, as in vLLM.

    `queue_timeout` limits the time without a slot, `timeout` the whole time. `return_warnings` reports in the body
    which parts of the request were dropped or ignored.
    """

    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    """Rank among the waiting requests of the same API key: the lowest number gets a slot first, as in vLLM."""

    queue_timeout: Seconds | None = None
    """Maximum seconds without a slot, after which the request gets a 503; no limit by default."""

    timeout: Seconds | None = None
    """Maximum seconds for the whole request, after which it gets a 504. `--request-timeout` is the upper limit."""

    return_warnings: bool = False
    """Whether the response's field `warnings` lists the dropped or ignored parts of the request, as `x-roost-warnings`
    does."""
