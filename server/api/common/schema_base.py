"""What all schemas are made of. Null means the same as leaving a field out."""

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from ....engine import MAX_LOGPROBS

MAX_MESSAGES: Final = 16_384
"""In a conversation, and parts in a message. Each takes microseconds of the event loop's time."""

MAX_STOP_CHARACTERS: Final = 4096
"""Characters of a stop string, or of a phrase that must not be said."""

MAX_FIELDS: Final = 256
"""In an object of a request, unknown ones included: each is looked at."""

type Several[T] = Annotated[list[T], Field(fail_fast=True, max_length=MAX_MESSAGES)]
"""Its first mistake ends the search for others, or millions of them would be written down."""

Count = Annotated[int, Field(ge=0, lt=2**31)]
TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


def is_list(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None


def _is_object(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<object>" if isinstance(value, dict | BaseModel) else None


def union(discriminate: Any, message: str) -> Discriminator:
    return Discriminator(discriminate, custom_error_type="wrong_kind", custom_error_message=message)


Text = Annotated[str, Tag("<text>")]

TEXT_OR_OBJECT: Final = union(_is_object, "must be a string or an object")
"""Of a union of words tagged `<text>` and a model tagged `<object>`."""

TEXT_OR_LIST: Final = union(is_list, "must be a string or an array")
"""Of a union of `Text` and a list tagged `<list>`."""


class Fields(BaseModel):
    """An object in which null means absent."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if len(data) > MAX_FIELDS:
            raise ValueError(f"an object has {len(data)} fields, and at most {MAX_FIELDS} are allowed")
        return {name: value for name, value in data.items() if value is not None}


CacheSalt = Annotated[str, Field(max_length=256)]
"""Requests share remembered states only with those of the same salt."""


class Body(Fields):
    """What all requests have in common."""

    model: str | None = None


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class TermsFields(Body):
    """Scheduling parameters of a request, and what is reported of it. A lower priority goes first, as in vLLM.

    `queue_timeout` limits the time without a slot, `timeout` the whole time. `return_warnings` puts what was dropped
    or ignored of the request into the body too.
    """

    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    queue_timeout: Seconds | None = None
    timeout: Seconds | None = None
    return_warnings: bool = False
