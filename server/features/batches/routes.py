"""`/v1/batches`: files of requests that run when slots are free."""

from typing import Any, Final

import orjson
from fastapi import APIRouter

from ...errors import kinds
from ...errors.request_errors import bad_value
from ...generation.admission import admission
from ...http.paging import After, Limit, QueryOrder, described, no_such_entry
from ...http.routes import AnyService, JsonRoute
from ...storage.objects import PageSpec
from ...storage.tenant_objects import missing
from .batch_records import BatchRecord, BatchStatus
from .batch_store import no_input
from .batch_table import cancel, read_list
from .open_batches import Batches
from .schemas import BatchBody, BatchList, BatchObject, kept_s

_UNIT_S: Final = {"h": 3600.0, "d": 86400.0}
"""Seconds of the units of `completion_window`."""

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
    metadata = orjson.dumps(body.metadata)
    expires_s = kept_s(body.output_expires_after, batches.retention_s, "output_expires_after")
    identity, window = service.model.identity, body.completion_window
    return _described(await batches.create(source, identity, window, window_s, metadata, expires_s))


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


@router.get("/v1/batches", response_model=BatchList)
async def list_batches(
    batches: Batches,
    limit: Limit = 20,
    order: QueryOrder = "desc",
    after: After = None,
) -> dict[str, Any]:
    """Lists the tenant's batches, page by page."""
    found = await batches.batches.page(PageSpec(limit, after, order == "desc"), read_list)
    if found is None:
        raise no_such_entry(after)
    return described(found, id_of=lambda each: each.id, describe=_described)


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
        "usage": {
            "input_tokens": batch.input_tokens,
            "input_tokens_details": {"cached_tokens": batch.cached_tokens},
            "output_tokens": batch.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": batch.input_tokens + batch.output_tokens,
        },
        "metadata": admission.get().parse_stored(batch.metadata),
    }


def _errors(message: str) -> dict[str, Any]:
    """Returns the errors of a batch whose tenant has reached its limit of bytes."""
    error = {"code": kinds.QUOTA_EXCEEDED.code, "message": message, "param": None, "line": None}
    return {"object": "list", "data": [error]}
