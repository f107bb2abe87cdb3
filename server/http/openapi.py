"""Responses in `/openapi.json`: errors, and successes that FastAPI cannot derive from a route."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from fastapi import FastAPI
from pydantic import ConfigDict, TypeAdapter, with_config
from pydantic.json_schema import GenerateJsonSchema

from ..errors.request_errors import ErrorBody
from .responses import CHUNKS, DONE, SseEncoder

type Responses = dict[int | str, dict[str, Any]]

ERRORS: Final[Responses] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}

PLAIN_TEXT: Final[Responses] = {200: {"content": {"text/plain": {}}}}

_COMPONENT: Final = "#/components/schemas/{model}"


described: Final = with_config(ConfigDict(use_attribute_docstrings=True))
"""Class decorator of a `TypedDict` whose fields have docstrings, which become their descriptions."""


def success(model: Any) -> Responses:
    """Returns the description of a response with a JSON object."""
    return {200: {"model": model}}


def streamable(model: Any, event: type, sse: SseEncoder = CHUNKS) -> Responses:
    """Returns the description of a response that is a JSON object or a stream of events; see `with_events`."""
    stream = {"itemSchema": _item_schema(event, sse)}
    return {200: {"model": model, "content": {"application/json": {}, "text/event-stream": stream}}}


def _item_schema(event: type, sse: SseEncoder) -> dict[str, Any]:
    """Returns the JSON schema of one server-sent event, in the form of OpenAPI 3.2 and FastAPI."""
    content: dict[str, Any] = _reference(event)
    if not sse.is_named:
        content = {"anyOf": [content, _reference(ErrorBody)]}  # named events include errors
    data: dict[str, Any] = {"type": "string", "contentMediaType": "application/json", "contentSchema": content}
    if sse.end == DONE:
        data = {"anyOf": [{"const": "[DONE]"}, data]}
    properties = {"event": {"type": "string"}, "data": data} if sse.is_named else {"data": data}
    return {"type": "object", "required": list(properties), "properties": properties}


def _reference(model: type) -> dict[str, Any]:
    return {"$ref": _COMPONENT.format(model=model.__name__)}


def with_events(app: FastAPI, events: Sequence[type]) -> Callable[[], dict[str, Any]]:
    """Returns the app's function for `/openapi.json`, extended by these events of streams."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schemas = describe()["components"]["schemas"]
            for name, schema in _event_schemas(events).items():
                schemas.setdefault(name, schema)
        return describe()

    return openapi


def _event_schemas(events: Sequence[type]) -> dict[str, Any]:
    """Returns the JSON schemas of events, and of their parts, by name."""
    inputs: list[Any] = [(event.__name__, "serialization", TypeAdapter(event).core_schema) for event in events]
    _, definitions = GenerateJsonSchema(ref_template=_COMPONENT).generate_definitions(inputs)
    return {str(name): schema for name, schema in definitions.items()}
