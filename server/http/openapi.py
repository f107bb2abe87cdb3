"""`/openapi.json` and `/docs`: descriptions of responses and events, and a page made from them."""

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request, Response
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


router = APIRouter()

_HEADERS: Final = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>Roost: endpoints</title>
</head>
<body>
<h1>Endpoints</h1>
<p>OpenAI's clients take the address <code>{base}v1</code>.
<a href="{root}/openapi.json">openapi.json</a> has all fields and responses.</p>
<table>
<thead><tr><th align="left">method</th><th align="left">path</th><th align="left"></th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</body>
</html>
"""


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """Returns the page."""
    rows = "\n".join(_rows(request.app.openapi()["paths"]))
    base, root = html.escape(str(request.base_url)), html.escape(request.scope.get("root_path", ""))
    return Response(_PAGE.format(base=base, root=root, rows=rows), media_type="text/html", headers=_HEADERS)


def _rows(paths: Mapping[str, Any]) -> Iterator[str]:
    """Yields a row for each method of each path."""
    for path, methods in paths.items():
        for method, operation in methods.items():
            text = " ".join(operation.get("description", operation["summary"]).split("\n\n")[0].split())
            cells = (method.upper(), f"<code>{html.escape(path)}</code>", html.escape(text))
            yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
