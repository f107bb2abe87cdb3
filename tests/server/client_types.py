"""What clients believe: answers checked against the types of their own packages, strictly."""

import json
from collections.abc import Hashable, Iterator
from functools import cache
from typing import Any, cast

from pydantic import BaseModel, TypeAdapter

OPEN_RESPONSES = frozenset({"frequency_penalty", "presence_penalty", "store"})
"""Fields of a response in Open Responses' specification that OpenAI's package does not know."""


def checked[T](kind: type[T] | Any, answer: Any, ours: frozenset[str] = frozenset()) -> T:
    """The answer as the client's own object.

    Args:
      kind: a type of the `openai` or the `anthropic` package.
      answer: JSON, as text or parsed.
      ours: fields that may be there although the client does not know them.
    """
    text = answer if isinstance(answer, str | bytes) else json.dumps(answer)
    value: T = _adapter(cast(Hashable, kind)).validate_json(text, strict=True)
    unknown = set(_extras(value)) - ours - OPEN_RESPONSES
    assert not unknown, f"the client does not know {unknown} in {text!r}"
    return value


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """A stream of named events: each name, which its data repeats, and the data."""
    found = []
    for block in text.strip().split("\n\n"):
        name, _, data = block.partition("\n")
        if name.startswith(":"):
            continue
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append((event["type"], event))
    return found


@cache  # since that of OpenAI's events has all of them
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _extras(value: Any) -> Iterator[str]:
    match value:
        case BaseModel():
            yield from value.model_extra or {}
            for name in type(value).model_fields:
                yield from _extras(getattr(value, name))
        case list():
            for each in value:
                yield from _extras(each)
        case dict():
            for each in value.values():
                yield from _extras(each)
