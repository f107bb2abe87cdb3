"""`/v1/batches`: files of requests that run when slots are free."""

from typing import Any, Final

import orjson
from fastapi import APIRouter

from ...errors.request_errors import bad_value
from ...http.paging import After, Limit, QueryOrder, page
from ...http.routes import AnyService, JsonRoute
from .batch_records import BatchRecord, BatchStatus
from .open_batches import Batches
from .schemas import BatchBody, BatchList, BatchObject

_UNIT_S: Final = {"h": 3600.0, "d": 86400.0}
"""Seconds of the units of `completion_window`."""

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/batches", response_model=BatchObject)
async def create_batch(body: BatchBody, service: AnyService, batches: Batches) -> dict[str, Any]:
    """Starts a batch. Any replica with this model and database runs its lines."""
    source = await batches.file(body.input_file_id, "input_file_id")
    if source.purpose != "batch":
        raise bad_value("input_file_id", f'input_file_id: the purpose of {source.id} is {source.purpose}, not "batch"')
    if source.url != body.endpoint:
        named = source.url or "several endpoints"
        raise bad_value("endpoint", f"endpoint: the lines of {source.id} name {named}, not {body.endpoint}")
    window = body.completion_window
    window_s = int(window[:-1]) * _UNIT_S[window[-1]]
    metadata = orjson.dumps(body.metadata)
    return _described(await batches.create(source, service.model.identity, window, window_s, metadata))


@router.get("/v1/batches", response_model=BatchList)
async def list_batches(
    batches: Batches,
    limit: Limit = 20,
    order: QueryOrder = "desc",
    after: After = None,
) -> dict[str, Any]:
    """Lists the tenant's batches, page by page."""
    return page(await batches.batches(), limit, order, after, id_of=lambda each: each.id, describe=_described)


@router.get("/v1/batches/{batch_id}", response_model=BatchObject)
async def get_batch(batch_id: str, batches: Batches) -> dict[str, Any]:
    """Describes a batch."""
    return _described(await batches.batch(batch_id))


@router.post("/v1/batches/{batch_id}/cancel", response_model=BatchObject)
async def cancel_batch(batch_id: str, batches: Batches) -> dict[str, Any]:
    """Ends a batch at once, and keeps what its lines have ended with; one that has ended stays as it is."""
    return _described(await batches.cancel(batch_id))


def _described(batch: BatchRecord) -> dict[str, Any]:
    ended = None if batch.ended is None else int(batch.ended)

    def ended_as(*statuses: BatchStatus) -> int | None:
        return ended if batch.status in statuses else None

    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.url,
        "errors": None,
        "input_file_id": batch.input_file,
        "completion_window": batch.window,
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
        "metadata": orjson.loads(batch.metadata),
    }
