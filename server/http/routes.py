"""What routes share: the service that they depend on, strict parsing of JSON bodies, pages of lists, and descriptions.

`/openapi.json` and the page `/docs` are made from the descriptions of responses and events.
"""

import html
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Final, Literal, TypedDict

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import ConfigDict, TypeAdapter, with_config
from pydantic.json_schema import GenerateJsonSchema

from ..errors import kinds
from ..errors.request_errors import ApiError, ErrorBody, bad_value
from ..generation.admission import admission
from ..generation.service import Service
from ..schemas.body import BodyCheck
from ..storage.objects import Page, PageSpec
from .responses import CHUNKS, DONE, SseEncoder


async def _service(request: Request) -> Service:
    return request.app.state.service


async def _ready_service(request: Request) -> Service:
    service: Service = request.app.state.service
    if not service.engine.is_ready:
        service.check_alive()
        progress = f" ({text})" if (text := service.loading()) else ""
        message = f"the model is still loading{progress}: GET /health/ready is 200 once it is ready"
        raise ApiError(kinds.MODEL_LOADING, message)
    return service


AnyService = Annotated[Service, Depends(_service)]
"""Service of routes that respond in every phase of the lifecycle."""

ReadyService = Annotated[Service, Depends(_ready_service)]
"""Service of routes that need the model: 503 while it loads and when the engine is dead."""


class JsonRoute(APIRoute):
    """Parses JSON more strictly than Python: no NaN, no lone surrogates, no nesting deeper than 201.

    The body is validated and checked before FastAPI sees it, so that a worker thread can do it and only the model stays
    in memory.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        model: Any = None if self.body_field is None else self.body_field.field_info.annotation

        async def handle_json(request: Request) -> Response:
            encoding = request.headers.get("content-encoding", "").strip().lower()
            if encoding not in ("", "identity"):
                message = f"content-encoding {encoding[:60]!r} is not supported: send the body uncompressed"
                raise ApiError(kinds.BODY_ENCODED, message)
            return await handle(_JsonRequest(request, model))

        return handle_json


class _JsonRequest(Request):
    """A request whose body is parsed on first use.

    Args:
      request: Request from Starlette.
      model: Model of the body; None if the route has no body.
    """

    def __init__(self, request: Request, model: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._model = model
        self._raw = bytearray()

    async def body(self) -> bytes:
        """Reads the body and returns its first byte.

        FastAPI only tests whether there is a body, but keeps the returned bytes until the response ends.
        """
        async for chunk in self.stream():
            self._raw += chunk
        return bytes(self._raw[:1])

    async def json(self) -> Any:
        raw, self._raw = self._raw, bytearray()
        check: BodyCheck = self.app.state.check_body
        return await admission.get().parse(raw, partial(check.built, self._model))


QueryOrder = Annotated[
    Literal["asc", "desc"], Query(description="Order of the entries: `desc` begins with the newest.")
]
After = Annotated[str | None, Query(description="Id of the entry that the page follows; none begins with the first.")]


async def _page_spec(
    limit: Annotated[int, Query(ge=1, le=100, description="Maximum number of entries of a page.")] = 20,
    order: QueryOrder = "desc",
    after: After = None,
) -> PageSpec:
    return PageSpec(limit, after, order == "desc")


QueryPage = Annotated[PageSpec, Depends(_page_spec)]
"""Page that a request asks for."""


def page_of[Item](items: Sequence[Item], spec: PageSpec, id_of: Callable[[Item], str]) -> Page[Item] | None:
    """Returns one page of a list; None if no item has the id `spec.after`.

    Args:
      items: All items, oldest first.
    """
    ordered = items[::-1] if spec.newest_first else items
    start = 0
    if spec.after is not None:
        start = 1 + next((place for place, item in enumerate(ordered) if id_of(item) == spec.after), -1)
        if not start:
            return None
    end = start + spec.limit
    return Page(ordered[start:end], end < len(ordered))


def page_object[Item](
    found: Page[Item] | None, after: str | None, id_of: Callable[[Item], str], describe: Callable[[Item], Any]
) -> dict[str, Any]:
    """Returns a page in the form that clients receive.

    Args:
      found: The page; None if the list has no item `after`.

    Raises:
      ApiError: 400, there is no such page.
    """
    if found is None:
        raise bad_value("after", f"after: the list has no item with the id {after!r}")
    return {
        "object": "list",
        "data": [describe(item) for item in found.items],
        "first_id": id_of(found.items[0]) if found.items else "",
        "last_id": id_of(found.items[-1]) if found.items else "",
        "has_more": found.has_more,
    }


type Responses = dict[int | str, dict[str, Any]]


def errors(body: Any) -> Responses:
    """Returns the responses of failed requests, for `/openapi.json`."""
    return {status: {"model": body} for status in ("4XX", "5XX")}


ERRORS: Final = errors(ErrorBody)

PLAIN_TEXT: Final[Responses] = {200: {"content": {"text/plain": {}}}}

_COMPONENT: Final = "#/components/schemas/{model}"

described: Final = with_config(ConfigDict(use_attribute_docstrings=True))
"""Class decorator of a `TypedDict` whose fields have docstrings, which become their descriptions."""


@described
class ListPage[Entry](TypedDict):
    """One page of a list."""

    object: Literal["list"]
    """Kind of object."""

    data: list[Entry]
    """Entries of the page."""

    first_id: str
    """Id of the page's first entry; empty if there is none."""

    last_id: str
    """Id of the page's last entry, which `after` takes for the next page."""

    has_more: bool
    """Whether more entries follow."""


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


docs_router = APIRouter()

_PAGE_HEADERS: Final = {
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


@docs_router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """Returns the page."""
    rows = "\n".join(_endpoint_rows(request.app.openapi()["paths"]))
    base, root = html.escape(str(request.base_url)), html.escape(request.scope.get("root_path", ""))
    return Response(_PAGE.format(base=base, root=root, rows=rows), media_type="text/html", headers=_PAGE_HEADERS)


def _endpoint_rows(paths: Mapping[str, Any]) -> Iterator[str]:
    """Yields a row for each method of each path."""
    for path, methods in paths.items():
        for method, operation in methods.items():
            text = " ".join(operation.get("description", operation["summary"]).split("\n\n")[0].split())
            cells = (method.upper(), f"<code>{html.escape(path)}</code>", html.escape(text))
            yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
