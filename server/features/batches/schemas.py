"""Schemas of `/v1/files` and `/v1/batches`."""

from typing import Annotated, ClassVar, Literal, TypedDict

from pydantic import Field

from ...http.openapi import described
from ...schemas.base import Fields
from ...schemas.field_rules import FieldRules, Refusal
from .batch_lines import BatchUrl


class BatchBody(Fields):
    """`POST /v1/batches`."""

    field_rules: ClassVar[FieldRules] = FieldRules(
        {"output_expires_after": Refusal((), "files are kept for --store-days")}
    )

    input_file_id: Annotated[str, Field(min_length=1)]
    """Id of an uploaded file of requests."""

    endpoint: BatchUrl
    """Endpoint that all lines of the file name."""

    completion_window: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}[hd]$")]
    """Time after which lines that have not run get an error, in hours (`24h`) or days (`7d`)."""

    metadata: Annotated[dict[str, str], Field(max_length=16)] = Field(default_factory=dict)
    """Up to 16 strings of the client's own."""


@described
class FileObject(TypedDict):
    """A stored file."""

    id: str
    """Id of the file."""

    object: Literal["file"]
    """Kind of object."""

    bytes: int
    """Size of the file."""

    created_at: int
    """Time of its upload, or of its batch's end, in seconds since 1970."""

    filename: str
    """Name of the file."""

    purpose: Literal["batch", "batch_output"]
    """`batch` for requests, `batch_output` for what they have ended with."""

    status: Literal["processed"]
    """Every line of the file was checked."""


@described
class FileList(TypedDict):
    """One page of files."""

    object: Literal["list"]
    """Kind of object."""

    data: list[FileObject]
    """Files of the page."""

    first_id: str
    """Id of the page's first file; empty if there is none."""

    last_id: str
    """Id of the page's last file, which `after` takes for the next page."""

    has_more: bool
    """Whether more files follow."""


@described
class RequestCounts(TypedDict):
    """Numbers of a batch's lines."""

    total: int
    """Number of lines of its input."""

    completed: int
    """Number of lines with a successful response."""

    failed: int
    """Number of lines with an error."""


@described
class BatchObject(TypedDict):
    """A batch."""

    id: str
    """Id of the batch."""

    object: Literal["batch"]
    """Kind of object."""

    endpoint: str
    """Endpoint of all its lines."""

    errors: None
    """Always null: a file is checked when it is uploaded."""

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

    metadata: dict[str, str]
    """The client's own strings."""


@described
class BatchList(TypedDict):
    """One page of batches."""

    object: Literal["list"]
    """Kind of object."""

    data: list[BatchObject]
    """Batches of the page."""

    first_id: str
    """Id of the page's first batch; empty if there is none."""

    last_id: str
    """Id of the page's last batch, which `after` takes for the next page."""

    has_more: bool
    """Whether more batches follow."""
