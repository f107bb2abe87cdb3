"""`/v1/messages/batches`: messages that run when slots are free, as lines of a stored batch."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import batched
from typing import Annotated, Final

import orjson
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from ...database.errors import StoreUnavailableError
from ...database.pages import Page, PageSpec
from ...errors import kinds
from ...errors.request_errors import ApiError, bad_value
from ...generation.admission import admission
from ...generation.service import Service
from ...http.routes import AnyService, JsonRoute
from ..anthropic.errors import ANTHROPIC_ERRORS
from ..batches.batch_input import InputCheck
from ..batches.batch_lines import MESSAGES_URL
from ..batches.batch_records import BatchRecord, FileRecord, models_of
from ..batches.batch_store import BatchStore
from ..batches.file_routes import prepended
from ..batches.line_upload import add_lines, finish_lines
from ..batches.open_batches import Batches
from .builder import described_batch, message_batch_id, stored_id
from .results import BatchResults
from .schemas import DeletedMessageBatch, MessageBatchBody, MessageBatchList, MessageBatchObject, MessageBatchRequest

_WINDOW: Final = "24h"
_WINDOW_S: Final = 86400.0
"""Seconds after which requests that have not run expire, as in Anthropic's API; `--store-days` if that is less."""

_LINES: Final = 1000
"""Number of requests that are checked and written at a time."""

_JSONL: Final = "application/x-jsonl"

router = APIRouter(route_class=JsonRoute)

_Limit = Annotated[int, Query(ge=1, le=1000, description="Maximum number of entries of a page.")]
_AfterId = Annotated[str | None, Query(description="Id of the batch that the page follows.")]
_BeforeId = Annotated[str | None, Query(description="Id of the batch that follows the page.")]


@router.post("/v1/messages/batches", response_model=MessageBatchObject, responses=ANTHROPIC_ERRORS)
async def create_message_batch(
    body: MessageBatchBody, request: Request, service: AnyService, batches: Batches
) -> MessageBatchObject:
    """Starts a batch. Any replica with this model and database runs its requests."""
    async with batches.uploads.hold():
        source = await _stored(body.requests, service, batches)
    window_s = min(_WINDOW_S, batches.retention_s)
    model = models_of(service.model.identity)[1]
    return described_batch(await batches.create(source, model, _WINDOW, window_s, b"{}"), str(request.base_url))


async def _stored(requests: list[MessageBatchRequest], service: Service, batches: BatchStore) -> FileRecord:
    """Stores requests as the lines of a file, and returns it. If a request is refused, the file is deleted.

    Raises:
      ApiError: A request is refused, or the tenant has no room for them.
    """
    check = InputCheck(service.admissions.max_body_bytes, admission.get().parse_now, (MESSAGES_URL,))
    file_id = await batches.begin_file("message_batch.jsonl")
    try:
        for some in batched(requests, _LINES):
            lines = await service.workers.run(partial(_lines, some))
            await add_lines(service, batches, file_id, check, lines)
        return await finish_lines(service, batches, file_id, check)
    except BaseException as error:
        with suppress(StoreUnavailableError):
            await batches.drop_file(file_id)
        if isinstance(error, ApiError) and error.param == "file":
            raise bad_value("requests", error.message.replace("file: line", "requests: number", 1)) from None
        raise


def _lines(requests: Sequence[MessageBatchRequest]) -> list[bytes]:
    return [_line(each) for each in requests]


def _line(request: MessageBatchRequest) -> bytes:
    """Returns the line of a request. Its id comes first, so that it is found without parsing the line.

    Raises:
      ApiError: The request has a number beyond 64 bits, or is nested too deeply.
    """
    fields = {"custom_id": request.custom_id, "method": "POST", "url": MESSAGES_URL, "body": request.params}
    try:
        return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:
        message = f"requests: params of {request.custom_id} have a number beyond 64 bits, or are nested too deeply"
        raise bad_value("requests", message) from None


@router.get("/v1/messages/batches", response_model=MessageBatchList, responses=ANTHROPIC_ERRORS)
async def list_message_batches(
    request: Request, batches: Batches, limit: _Limit = 20, after_id: _AfterId = None, before_id: _BeforeId = None
) -> MessageBatchList:
    """Lists the tenant's message batches, newest first, page by page."""
    found = await _page(batches, limit, after_id, before_id)
    ids = [message_batch_id(each.id) for each in found.items]
    return {
        "data": [described_batch(each, str(request.base_url)) for each in found.items],
        "has_more": found.has_more,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
    }


async def _page(batches: BatchStore, limit: int, after_id: str | None, before_id: str | None) -> Page[BatchRecord]:
    """Returns a page of message batches, newest first.

    Raises:
      ApiError: The named batch does not exist, or both `after_id` and `before_id` are given.
    """
    if after_id is not None and before_id is not None:
        raise bad_value("before_id", "after_id and before_id exclude each other: send one of them")
    name = after_id if before_id is None else before_id
    spec = PageSpec(limit, None if name is None else stored_id(name), newest_first=before_id is None)
    found = await batches.batches(spec, MESSAGES_URL)
    if found is None:
        param = "after_id" if before_id is None else "before_id"
        raise bad_value(param, f"{param}: there is no message batch with the id {name!r}")
    return found if before_id is None else Page(found.items[::-1], found.has_more)


@router.get("/v1/messages/batches/{batch_id}", response_model=MessageBatchObject, responses=ANTHROPIC_ERRORS)
async def get_message_batch(batch_id: str, request: Request, batches: Batches) -> MessageBatchObject:
    """Describes a batch."""
    return described_batch(await _batch(batch_id, batches), str(request.base_url))


@router.post("/v1/messages/batches/{batch_id}/cancel", response_model=MessageBatchObject, responses=ANTHROPIC_ERRORS)
async def cancel_message_batch(batch_id: str, request: Request, batches: Batches) -> MessageBatchObject:
    """Cancels a batch, and keeps its results so far; a batch that has ended is unchanged."""
    batch = await _batch(batch_id, batches)
    return described_batch(await batches.cancel(batch.id), str(request.base_url))


@router.delete("/v1/messages/batches/{batch_id}", responses=ANTHROPIC_ERRORS)
async def delete_message_batch(batch_id: str, batches: Batches) -> DeletedMessageBatch:
    """Deletes a batch that has ended, and its results."""
    batch = await _batch(batch_id, batches)
    if not await batches.delete(batch):
        raise bad_value(None, f"{batch_id} is in progress: cancel it first")
    return DeletedMessageBatch(id=batch_id, type="message_batch_deleted")


@router.get(
    "/v1/messages/batches/{batch_id}/results",
    response_class=StreamingResponse,
    responses={
        200: {"description": "Results, one a line.", "content": {_JSONL: {"schema": {"type": "string"}}}},
        **ANTHROPIC_ERRORS,
    },
)
async def get_message_batch_results(batch_id: str, batches: Batches) -> Response:
    """Returns the results of a batch that has ended, in any order."""
    batch = await _batch(batch_id, batches)
    if batch.ended is None:
        raise ApiError(kinds.NO_SUCH_OBJECT, f"{batch_id} has no results until it has ended")
    lines = BatchResults(batches, batch, admission.get()).lines()
    first = await anext(lines, b"")  # before the status, so that an unavailable database is a 503
    return StreamingResponse(prepended(first, lines), media_type=_JSONL)


async def _batch(batch_id: str, batches: BatchStore) -> BatchRecord:
    """Returns a batch.

    Raises:
      ApiError: The batch of messages does not exist.
    """
    with suppress(ApiError):
        batch = await batches.batch(stored_id(batch_id))
        if batch.url == MESSAGES_URL:
            return batch
    raise ApiError(kinds.NO_SUCH_OBJECT, f"there is no message batch with the id {batch_id[:100]!r}")
