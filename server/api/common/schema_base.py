"""Types and base classes of all schemas, and the check of what a body's schema does not name.

Null means the same as leaving a field out.
"""

import difflib
import logging
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Final

import orjson
from fastapi import Request
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from ....engine import MAX_LOGPROBS
from ...errors import ApiError, bad_value, unknown_model
from ...generation.service import Service
from ...request_warnings import warn
from .field_rules import NO_RULES, FieldRules, Refusal

MAX_MESSAGES: Final = 16_384
"""Maximum number of messages of a conversation, and of parts of a message. Each takes microseconds."""

MAX_STOP_CHARACTERS: Final = 4096
"""Maximum characters of a stop string or a bad word."""

MAX_FIELDS: Final = 256
"""Maximum number of fields of an object, unknown ones included."""

_MAX_NAMES: Final = 100
"""Maximum number of unknown names that are logged, so that made-up names fill neither the log nor the memory."""

_MAX_GUESSES: Final = 4
"""Maximum number of unknown names of a request that are compared with the known ones; each takes a millisecond."""

_logger = logging.getLogger(__name__)

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


class Fields(BaseModel):
    """An object in which null means absent.

    Attributes:
      field_rules: Rules for the fields that the schema does not name.
    """

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, use_attribute_docstrings=True)

    field_rules: ClassVar[FieldRules] = NO_RULES

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


class Body(Fields):
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


class FieldCheck:
    """Refuses fields without effect here, and reports unknown names: in a header, and each once in the log.

    Args:
      strict: Whether unknown names are refused as well.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self._logged: set[str] = set()

    def __call__(self, body: Fields) -> None:
        """Checks a body.

        Raises:
          ApiError: A field would change the response and has no effect here, or it is unknown and the check is strict.
        """
        rules, unknown = body.field_rules, []
        for name, value in (body.model_extra or {}).items():
            refusal = rules.refused.get(name)
            if refusal is None and name not in rules.ignored:
                unknown.append(name)
            elif refusal is not None and value not in refusal.neutral:
                raise _refused(name, refusal)
        for index, name in enumerate(unknown[:_MAX_NAMES]):
            self._report(name, closest_field(type(body), name) if index < _MAX_GUESSES else None)

    def _report(self, name: str, guess: str | None) -> None:
        hint = "" if guess is None else f"; did you mean {guess}?"
        if self._strict:
            raise bad_value(name, f"the field {name[:60]!r} is unknown{hint}")
        warn(name if guess is None else f"{name} ({guess}?)")
        if name not in self._logged and len(self._logged) < _MAX_NAMES:
            self._logged.add(name)
            _logger.warning("the unknown field %.60r was ignored%s; this is logged once", name, hint)


def check_body(body: Fields, request: Request) -> None:
    """Checks that a body names this model, and the fields that its schema does not name.

    Raises:
      ApiError: The model is another one, or a field is refused.
    """
    service: Service = request.app.state.service
    if isinstance(body, Body) and body.model is not None and body.model != service.model.id:
        raise unknown_model(body.model)
    check_fields: FieldCheck = request.app.state.check_fields
    check_fields(body)


@lru_cache(maxsize=1024)
def closest_field(kind: type[Fields], name: str) -> str | None:
    """Returns the known field that a misspelt name is closest to, if any is close."""
    rules = kind.field_rules
    known: Iterable[str] = {*kind.model_fields, *rules.refused, *rules.ignored}
    return next(iter(difflib.get_close_matches(name[:60], sorted(known), n=1, cutoff=0.8)), None)


def _refused(name: str, refusal: Refusal) -> ApiError:
    values = " or ".join(orjson.dumps(value).decode() for value in refusal.neutral)
    leave_out = f"leave it out, or send {values}" if values else "leave it out"
    return bad_value(name, f"{name} is not supported: {refusal.instead or leave_out}")
