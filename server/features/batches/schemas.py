"""Schemas of `/v1/files` and `/v1/batches`, and deletion times of files, from the `expires_after` that clients send."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypedDict

from pydantic import Field, ValidationError

from ...errors.request_errors import bad_value
from ...errors.validation_errors import describe
from ...http.openapi import described
from ...schemas.body import Fields
from ...schemas.metadata import Metadata
from .batch_lines import BatchUrl

EXPIRY_FIELDS: Final = {f"expires_after[{name}]": name for name in ("anchor", "seconds")}
"""Fields of a form, and their names in `expires_after`."""

_DAY_S: Final = 86400.0


class ExpiresAfter(Fields):
    """Lifetime of a file."""

    anchor: Literal["created_at"]
    """Time from which the seconds count."""

    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]
    """Seconds for which the file is kept, at most `--store-days`."""


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

    expires_at: int | None
    """Time at which it is deleted, in seconds since 1970; null if it is kept for `--store-days`."""

    filename: str
    """Name of the file."""

    purpose: Literal["batch", "batch_output"]
    """`batch` for requests, `batch_output` for results."""

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
class InputTokensDetails(TypedDict):
    """Parts of the input tokens."""

    cached_tokens: int
    """Prompt tokens served from the prefix cache."""


@described
class OutputTokensDetails(TypedDict):
    """Parts of the output tokens."""

    reasoning_tokens: int
    """Always 0: the model does not reason."""


@described
class BatchUsage(TypedDict):
    """Tokens of the responses of a batch."""

    input_tokens: int
    """Prompt tokens."""

    input_tokens_details: InputTokensDetails
    """Parts of the prompt tokens."""

    output_tokens: int
    """Generated tokens."""

    output_tokens_details: OutputTokensDetails
    """Parts of the generated tokens."""

    total_tokens: int
    """Sum of both."""


@described
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


@described
class BatchErrors(TypedDict):
    """Reasons why the lines of a batch wait."""

    object: Literal["list"]
    """Kind of object."""

    data: list[BatchError]
    """Reasons."""


@described
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

    usage: BatchUsage
    """Tokens of the lines that have ended until now."""

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


def form_expiry(fields: Mapping[str, str]) -> ExpiresAfter | None:
    """Returns the `expires_after` of a form, which has one field per value; None if the form has none.

    Raises:
      ApiError: A value is wrong or missing.
    """
    sent: dict[str, Any] = {EXPIRY_FIELDS[name]: value for name, value in fields.items() if name in EXPIRY_FIELDS}
    if not sent:
        return None
    if re.fullmatch("[0-9]{1,9}", sent.get("seconds", "")):
        sent["seconds"] = int(sent["seconds"])
    try:
        return ExpiresAfter.model_validate(sent)
    except ValidationError as error:
        detail = error.errors()[0]
        raise bad_value("expires_after", describe(detail, ("expires_after", *detail["loc"]))) from None


def kept_s(expiry: ExpiresAfter | None, most_s: float, param: str) -> float | None:
    """Returns the seconds for which a file is kept; None if the client set no limit.

    Args:
      most_s: Seconds after which all files are deleted.
      param: Name of the field.

    Raises:
      ApiError: `expiry` is longer than `most_s`.
    """
    if expiry is not None and expiry.seconds > most_s:
        limit = f"{most_s:g}, which is {most_s / _DAY_S:g} days (--store-days)"
        raise bad_value(param, f"{param}.seconds must be at most {limit}, got {expiry.seconds}")
    return None if expiry is None else float(expiry.seconds)
