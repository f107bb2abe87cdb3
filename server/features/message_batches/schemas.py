"""Schemas of `/v1/messages/batches`."""

from typing import Annotated, Any, Literal, TypedDict

from pydantic import Field

from ...schemas.base import Fields


class MessageBatchRequest(Fields):
    """A request of a batch."""

    custom_id: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    """The client's own id, unique in the batch: up to 64 letters, digits, `_` and `-`."""

    params: dict[str, Any]
    """Body of `POST /v1/messages`, without `stream`. It is checked when the request runs."""


class MessageBatchBody(Fields):
    """Body of `POST /v1/messages/batches`."""

    requests: Annotated[list[MessageBatchRequest], Field(fail_fast=True, min_length=1, max_length=100_000)]
    """Requests, whose total size is limited by `--max-body-bytes`."""


class MessageBatchCounts(TypedDict):
    """Numbers of a batch's requests. All are processing until the whole batch has ended."""

    processing: int
    succeeded: int
    errored: int
    canceled: int
    expired: int


class MessageBatchObject(TypedDict):
    """A batch. `results_url` is null until it has ended."""

    id: str
    type: Literal["message_batch"]
    processing_status: Literal["in_progress", "ended"]
    request_counts: MessageBatchCounts
    created_at: str
    expires_at: str
    ended_at: str | None
    cancel_initiated_at: str | None
    archived_at: None
    results_url: str | None


class MessageBatchList(TypedDict):
    """One page of batches, newest first."""

    data: list[MessageBatchObject]
    has_more: bool
    first_id: str | None
    last_id: str | None


class DeletedMessageBatch(TypedDict):
    """Response to the deletion of a batch."""

    id: str
    type: Literal["message_batch_deleted"]
