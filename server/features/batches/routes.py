"""`/v1/batches`: files of requests that run when slots are free."""

from typing import Annotated, Any, Final, Literal, TypedDict
from uuid import uuid4

import orjson
from fastapi import APIRouter
from pydantic import Field

from ...errors import kinds
from ...errors.request_errors import bad_value
from ...generation.admission import stored_json
from ...http import routes
from ...http.routes import AnyService, JsonRoute, ListPage, QueryPage, page_object
from ...openai.response_schemas import ItemUsage, item_usage
from ...schemas.body import Fields, Metadata
from ...storage.objects import missing
from .batch_lines import BatchUrl
from .batch_store import no_input
from .batch_table import BatchRecord, BatchStatus, cancel
from .file_routes import ExpiresAfter, kept_s
from .open_batches import Batches

_UNIT_S: Final = {"h": 3600.0, "d": 86400.0}
"""Seconds of the units of `completion_window`."""


class BatchBody(Fields):
    """`POST /v1/batches`."""

    input_file_id: Annotated[str, Field(min_length=1)]
    """Id of an uploaded file of requests."""

    endpoint: BatchUrl
    """Endpoint that all lines of the file name."""

    completion_window: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}[hd]$")]
    """Hours (`24h`) or days (`7d`), at most `--store-days`, after which lines that have not run get an error."""

    output_expires_after: ExpiresAfter | None = None
    """Lifetime of the batch's files; `--store-days` after their creation by default."""

    metadata: Metadata = Field(default_factory=dict)
    """Up to 16 names and values of the client's own, of at most 64 and 512 characters."""


@routes.described
class RequestCounts(TypedDict):
    """Numbers of a batch's lines."""

    total: int
    """Number of lines of its input."""

    completed: int
    """Number of lines with a successful response."""

    failed: int
    """Number of lines with an error."""


@routes.described
class BatchError(TypedDict):
    """A reason why the lines of a batch wait."""

    code: str
    """Identifier for programs."""

    message: str
    """The reason, and what to do."""

    param: None
    """Always null: no field is wrong."""

    line: None
    """Always null: the error is not about a single line."""


@routes.described
class BatchErrors(TypedDict):
    """Reasons why the lines of a batch wait."""

    object: Literal["list"]
    """Kind of object."""

    data: list[BatchError]
    """Reasons."""


@routes.described
class BatchObject(TypedDict):
    """A batch."""

    id: str
    """Id of the batch."""

    object: Literal["batch"]
    """Kind of object."""

    endpoint: str
    """Endpoint of all its lines."""

    errors: BatchErrors | None
    """Why its lines wait, if the files of the API key leave no room for their output; only of a single batch."""

    input_file_id: str
    """Id of the file of requests."""

    completion_window: str
    """Time after which lines that have not run get an error."""

    status: Literal["in_progress", "completed", "expired", "cancelled"]
    """State of the batch."""

    output_file_id: str | None
    """Id of the file of successful responses, once the batch has ended; null if there is none."""

    error_file_id: str | None
    """Id of the file of errors, once the batch has ended; null if there is none."""

    created_at: int
    """Time of its creation, in seconds since 1970."""

    in_progress_at: int
    """The same time."""

    expires_at: int
    """Time at which its completion window ends, in seconds since 1970."""

    finalizing_at: int | None
    """Time of its end if all lines have ended, in seconds since 1970."""

    completed_at: int | None
    """Time of its end if it completed within its window, in seconds since 1970."""

    failed_at: None
    """Always null: no batch fails as a whole."""

    expired_at: int | None
    """Time of its end if its window ended before, in seconds since 1970."""

    cancelling_at: int | None
    """The time at which it was cancelled."""

    cancelled_at: int | None
    """Time at which it was cancelled, in seconds since 1970."""

    request_counts: RequestCounts
    """Numbers of its lines."""

    usage: ItemUsage
    """Tokens of the lines that have ended until now."""

    metadata: dict[str, str]
    """The client's own strings."""


router = APIRouter(route_class=JsonRoute)


@router.post("/v1/batches", response_model=BatchObject)
async def create_batch(body: BatchBody, service: AnyService, batches: Batches) -> dict[str, Any]:
    """Starts a batch. Any replica with this model and database runs its lines."""
    source = await batches.files.find(body.input_file_id)
    if source is None:
        raise no_input(body.input_file_id)
    if source.purpose != "batch":
        raise bad_value("input_file_id", f'input_file_id: the purpose of {source.id} is {source.purpose}, not "batch"')
    if source.url != body.endpoint:
        named = source.url or "several endpoints"
        raise bad_value("endpoint", f"endpoint: the lines of {source.id} name {named}, not {body.endpoint}")
    window_s = _seconds(body.completion_window, batches.retention_s)
    batch = BatchRecord(
        source.tenant,
        f"batch_{uuid4().hex}",
        BatchStatus.IN_PROGRESS,
        service.model.identity,
        source.url,
        source.id,
        f"file-{uuid4().hex}",
        f"file-{uuid4().hex}",
        body.completion_window,
        orjson.dumps(body.metadata),
        num_lines=source.num_lines,
        output_expires_s=kept_s(body.output_expires_after, batches.retention_s, "output_expires_after"),
    )
    return _described(await batches.create(batch, window_s))


def _seconds(window: str, most_s: float) -> float:
    """Returns the seconds of a `completion_window`.

    Raises:
      ApiError: The window is longer than `most_s`, for which its files are kept.
    """
    window_s = int(window[:-1]) * _UNIT_S[window[-1]]
    if window_s > most_s:
        days = f"{most_s / _UNIT_S['d']:g} days (--store-days)"
        raise bad_value("completion_window", f"completion_window must be at most {days}, got {window}")
    return window_s


@router.get("/v1/batches", response_model=ListPage[BatchObject])
async def list_batches(batches: Batches, spec: QueryPage) -> dict[str, Any]:
    """Lists the tenant's batches, page by page."""
    return page_object(await batches.batches.page(spec), spec.after, lambda each: each.id, _described)


@router.get("/v1/batches/{batch_id}", response_model=BatchObject)
async def get_batch(batch_id: str, batches: Batches) -> dict[str, Any]:
    """Describes a batch. `errors` says why its lines wait, if they do."""
    batch = await batches.batches.get(batch_id)
    return _described(batch, await batches.shortage(batch))


@router.post("/v1/batches/{batch_id}/cancel", response_model=BatchObject)
async def cancel_batch(batch_id: str, batches: Batches) -> dict[str, Any]:
    """Cancels a batch, and keeps the results of its lines so far; a batch that has ended is unchanged."""
    batch = await batches.batches.write(cancel, batch_id)
    if batch is None:
        raise missing("batch", batch_id)
    return _described(batch)


def _described(batch: BatchRecord, shortage: str | None = None) -> dict[str, Any]:
    ended = None if batch.ended is None else int(batch.ended)

    def ended_as(*statuses: BatchStatus) -> int | None:
        return ended if batch.status in statuses else None

    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.url,
        "errors": None if shortage is None else _errors(shortage),
        "input_file_id": batch.input_file,
        "completion_window": batch.time_window,
        "status": batch.status.value,
        "output_file_id": batch.output_file if ended is not None and batch.num_completed else None,
        "error_file_id": batch.error_file if ended is not None and batch.num_failed else None,
        "created_at": int(batch.created),
        "in_progress_at": int(batch.created),
        "expires_at": int(batch.expires),
        "finalizing_at": ended_as(BatchStatus.COMPLETED, BatchStatus.EXPIRED),
        "completed_at": ended_as(BatchStatus.COMPLETED),
        "failed_at": None,
        "expired_at": ended_as(BatchStatus.EXPIRED),
        "cancelling_at": ended_as(BatchStatus.CANCELLED),
        "cancelled_at": ended_as(BatchStatus.CANCELLED),
        "request_counts": {
            "total": batch.num_lines,
            "completed": batch.num_completed,
            "failed": batch.num_failed,
        },
        "usage": item_usage(batch.input_tokens, batch.cached_tokens, batch.output_tokens),
        "metadata": stored_json(batch.metadata),
    }


def _errors(message: str) -> dict[str, Any]:
    """Returns the errors of a batch whose tenant has reached its limit of bytes."""
    error = {"code": kinds.QUOTA_EXCEEDED.code, "message": message, "param": None, "line": None}
    return {"object": "list", "data": [error]}
