"""Builds Anthropic's message batches from stored batches."""

from datetime import UTC, datetime

from ..batches.batch_records import BatchRecord, BatchStatus
from .schemas import MessageBatchCounts, MessageBatchObject

_PREFIX = "msg"
"""Prefix of the id of a message batch. The rest is the id of the stored batch."""


def message_batch_id(batch_id: str) -> str:
    """Returns the id of a message batch."""
    return f"{_PREFIX}{batch_id}"


def stored_id(message_batch_id: str) -> str:
    """Returns the id of the stored batch of a message batch; empty if the id is invalid."""
    return message_batch_id.removeprefix(_PREFIX) if message_batch_id.startswith(_PREFIX) else ""


def described_batch(batch: BatchRecord, base_url: str) -> MessageBatchObject:
    """Returns a batch in the form that clients receive.

    Args:
      base_url: Address of the server as the client knows it, with a slash at the end.
    """
    name, is_cancelled = message_batch_id(batch.id), batch.status is BatchStatus.CANCELLED
    has_ended, ended = batch.ended is not None, None if batch.ended is None else _time(batch.ended)
    return {
        "id": name,
        "type": "message_batch",
        "processing_status": "ended" if has_ended else "in_progress",
        "request_counts": _counts(batch),
        "created_at": _time(batch.created),
        "expires_at": _time(batch.expires),
        "ended_at": ended,
        "cancel_initiated_at": ended if is_cancelled else None,
        "archived_at": None,
        "results_url": f"{base_url}v1/messages/batches/{name}/results" if has_ended else None,
    }


def _counts(batch: BatchRecord) -> MessageBatchCounts:
    """Returns the counts. All failed requests of an expired batch count as expired."""
    if batch.ended is None:
        return {"processing": batch.num_lines, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    has_expired = batch.status is BatchStatus.EXPIRED
    return {
        "processing": 0,
        "succeeded": batch.num_completed,
        "errored": 0 if has_expired else batch.num_failed,
        "canceled": batch.num_lines - batch.num_completed - batch.num_failed,
        "expired": batch.num_failed if has_expired else 0,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
