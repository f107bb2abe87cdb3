"""`/v1/files`: inputs of batches, which are checked and ordered while they arrive, and results."""

from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final, Literal, TypedDict

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field, ValidationError

from ...database.errors import StoreUnavailableError
from ...errors import kinds
from ...errors.request_errors import ApiError, bad_value, body_too_large, warn_all
from ...errors.validation_errors import describe
from ...generation.admission import Admission
from ...generation.service import Service
from ...http import routes
from ...http.middleware import announced_bytes
from ...http.multipart import MAX_FORM_BYTES, UploadReader
from ...http.routes import After, AnyService, JsonRoute, ListPage, QueryOrder, page_object
from ...openai.response_schemas import DeletedObject
from ...schemas.body import Fields
from ...storage.objects import PageSpec
from .batch_lines import LineError, Parse, id_hash, max_line_bytes, parse_line, repeated, run_order
from .batch_store import BatchStore
from .file_table import FILES, SEGMENT_LINES, FileRecord
from .open_batches import Batches

PATH: Final = "/v1/files"

MAX_FILE_BYTES: Final = 2 * 2**30
"""Maximum bytes of an uploaded file."""

EXPIRY_FIELDS: Final = {f"expires_after[{name}]": name for name in ("anchor", "seconds")}
"""Fields of a form, and their names in `expires_after`."""

_FIELDS: Final = frozenset({"purpose", *EXPIRY_FIELDS})
"""Fields of a form beside the file."""

_DAY_S: Final = 86400.0

_JSONL: Final = "application/jsonl"

_WRITE_BYTES: Final = 2**19
"""Bytes of lines that are checked and written at a time: half of a tenant's share of a transaction."""


class LineSplitter:
    """Splits pieces of a file into lines with their newlines. Empty lines are dropped.

    The beginning of a line that is too long becomes a line, which `InputCheck` refuses.

    Attributes:
      num_bytes: Bytes of the line that is not complete.

    Args:
      max_body_bytes: Maximum bytes of a line's body.
    """

    def __init__(self, max_body_bytes: int) -> None:
        self._rest = bytearray()
        self._max_bytes = max_line_bytes(max_body_bytes)

    @property
    def num_bytes(self) -> int:
        return len(self._rest)

    def feed(self, piece: bytes) -> list[bytes]:
        """Returns the lines that a piece completes."""
        whole, newline, rest = piece.rpartition(b"\n")
        lines = list[bytes]()
        if newline:
            lines = [line + newline for line in bytes(self._rest + whole).split(newline) if line.strip()]
            self._rest.clear()
        self._rest += rest
        if len(self._rest) > self._max_bytes:
            lines.append(bytes(self._rest))
            self._rest.clear()
        return lines

    def end(self) -> list[bytes]:
        """Returns the last line, if it has no newline."""
        return self.feed(b"\n")


class InputCheck:
    """Checks that every line is a request and that each `custom_id` occurs once, and decides the order in which lines
    run.

    Attributes:
      num_lines: Number of lines so far.
      num_bytes: Size of these lines.
      urls: Endpoints that these lines name.

    Args:
      max_body_bytes: Maximum bytes of a line's body.
      parse: See `parse_line`.
    """

    def __init__(self, max_body_bytes: int, parse: Parse) -> None:
        self.num_lines = 0
        self.num_bytes = 0
        self.urls: set[str] = set()
        self._max_body_bytes = max_body_bytes
        self._parse = parse
        self._hashes = array("Q")
        self._groups, self._num_tokens = array("Q"), array("Q")

    def add(self, lines: Sequence[bytes]) -> list[Sequence[int]]:
        """Checks the next lines, and returns the orders of the segments that they complete; see `put_order`.

        Raises:
          ApiError: A line is not a request.
        """
        segments = list[Sequence[int]]()
        for raw in lines:
            self.num_lines += 1
            self.num_bytes += len(raw)
            try:
                line = parse_line(raw, self.num_lines, self._max_body_bytes, self._parse)
            except LineError as error:
                raise line_error(self.num_lines, str(error)) from None
            self.urls.add(line.url)
            self._hashes.append(id_hash(line.custom_id))
            self._groups.append(line.group)
            self._num_tokens.append(line.num_tokens)
            if len(self._groups) == SEGMENT_LINES:
                segments.append(self._take_order())
        return segments

    def finish(self) -> tuple[str, Sequence[int]]:
        """Returns the endpoint of all lines, empty if they name several, and the order of the last segment.

        Raises:
          ApiError: The file has no line, or a `custom_id` occurs twice.
        """
        if not self.num_lines:
            raise bad_value("file", "file: has no line")
        for first, second in repeated(np.frombuffer(self._hashes, np.uint64)):
            raise line_error(second + 1, f"custom_id is that of line {first + 1}; each must occur once")
        return next(iter(self.urls)) if len(self.urls) == 1 else "", self._take_order()

    def _take_order(self) -> list[int]:
        """Returns the order of a segment, and begins the next one, so that memory does not grow with the file."""
        columns = np.array(self._groups, np.uint64), np.array(self._num_tokens, np.uint64)
        self._groups, self._num_tokens = array("Q"), array("Q")
        return run_order(*columns).tolist()


def line_error(number: int, message: str) -> ApiError:
    """Returns the error about a line of an upload. Lines are numbered from 1; empty lines are not counted."""
    return bad_value("file", f"file: line {number} of the requests: {message}")


class ExpiresAfter(Fields):
    """Lifetime of a file."""

    anchor: Literal["created_at"]
    """Time from which the seconds count."""

    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]
    """Seconds for which the file is kept, at most `--store-days`."""


@routes.described
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


async def _refuse_anthropic(request: Request) -> None:
    """Refuses Anthropic's clients, whose files are documents in another shape."""
    if "anthropic-version" in request.headers:
        instead = "send the text of a document in a block of the type document"
        message = f"{PATH} has no files of Anthropic's API, only OpenAI's inputs and outputs of batches: {instead}"
        raise ApiError(kinds.NO_SUCH_URL, message)


router = APIRouter(route_class=JsonRoute, dependencies=[Depends(_refuse_anthropic)])


@router.post(
    PATH,
    response_model=FileObject,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["purpose", "file"],
                        "properties": {
                            "purpose": {"type": "string", "enum": ["batch"], "description": "Use of the file."},
                            "file": {"type": "string", "format": "binary", "description": "Requests, one a line."},
                            "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                            "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
                        },
                    }
                }
            },
        }
    },
)
async def upload_file(request: Request, service: AnyService, batches: Batches) -> dict[str, Any]:
    """Stores a file of requests, and checks its lines while they arrive."""
    own = service.admissions.open()
    try:
        return _described(await _Upload(service, batches, own).receive(request))
    finally:
        own.release()


@router.get(PATH, response_model=ListPage[FileObject])
async def list_files(
    batches: Batches,
    limit: Annotated[int, Query(ge=1, le=10_000, description="Maximum number of entries of a page.")] = 10_000,
    order: QueryOrder = "desc",
    after: After = None,
    purpose: Annotated[
        Literal["batch", "batch_output"] | None, Query(description="Only files of this purpose; none lists all.")
    ] = None,
) -> dict[str, Any]:
    """Lists the tenant's files, page by page."""
    only = {} if purpose is None else {"purpose": purpose}
    found = await batches.files.page(PageSpec(limit, after, order == "desc"), **only)
    return page_object(found, after, lambda each: each.id, _described)


@router.get("/v1/files/{file_id}", response_model=FileObject)
async def get_file(file_id: str, batches: Batches) -> dict[str, Any]:
    """Describes a file."""
    return _described(await batches.files.get(file_id))


@router.get(
    "/v1/files/{file_id}/content",
    response_class=StreamingResponse,
    responses={200: {"description": "Lines of the file.", "content": {_JSONL: {"schema": {"type": "string"}}}}},
)
async def get_file_content(file_id: str, batches: Batches) -> Response:
    """Returns the lines of a file."""
    record = await batches.files.get(file_id)
    headers = {"content-length": str(record.num_bytes)}
    return StreamingResponse(batches.content(record), headers=headers, media_type=_JSONL)


@router.delete("/v1/files/{file_id}")
async def delete_file(file_id: str, batches: Batches) -> DeletedObject:
    """Deletes a file that no batch in progress reads."""
    await batches.delete_file(file_id)
    return DeletedObject(id=file_id, object="file", deleted=True)


class _Upload:
    """An upload, whose lines are checked and written to the store while they arrive.

    What it holds is charged as it arrives. No lock is held while the upload waits for its client.

    Args:
      service: Service with the limits of bodies and the workers.
      batches: Store of the file.
      own: Admission of the upload.
    """

    def __init__(self, service: Service, batches: BatchStore, own: Admission) -> None:
        self._service = service
        self._batches = batches
        self._own = own
        max_body_bytes = service.admissions.max_body_bytes
        self._splitter, self._check = LineSplitter(max_body_bytes), InputCheck(max_body_bytes, own.parse_now)
        self._file_id = ""
        self._lines: list[bytes] = []
        self._num_held = 0

    async def receive(self, request: Request) -> FileRecord:
        """Returns the file of a request. If the upload fails, the written lines are deleted, most by a later `look` of
        a replica if they are many.

        Raises:
          ApiError: The body is not a form with a file of requests, the tenant has no room for it, or the budget is
            exhausted.
        """
        announced = announced_bytes(request.headers)
        reader = UploadReader(request.headers.get("content-type", ""), _FIELDS, MAX_FILE_BYTES)
        if announced > MAX_FILE_BYTES + MAX_FORM_BYTES:
            raise body_too_large(MAX_FILE_BYTES)
        try:
            async for piece in reader.pieces(request, self._own):
                if not self._file_id:
                    await self._begin(reader, max(announced - MAX_FORM_BYTES, 1))
                await self._add(piece)
            return await self._finish(reader)
        except BaseException:
            await self._remove()
            raise

    async def _begin(self, reader: UploadReader, num_bytes: int) -> None:
        """Stores an empty file, if the tenant has room for the announced size."""
        _check_purpose(reader.fields.get("purpose", "batch"))
        self._file_id = await self._batches.begin_file(reader.filename or "file", num_bytes)

    async def _add(self, piece: bytes) -> None:
        await self._own.keep(len(piece))
        self._num_held += len(piece)
        self._lines += self._splitter.feed(piece)
        if sum(map(len, self._lines)) >= _WRITE_BYTES:
            await self._write()

    async def _write(self) -> None:
        """Checks and writes the lines that have arrived, in the tenant's turn."""
        async with self._batches.uploads.hold():
            await self._check_and_store()
        self._lines.clear()
        self._own.drop(self._num_held - self._splitter.num_bytes)
        self._num_held = self._splitter.num_bytes

    async def _check_and_store(self) -> None:
        first = self._check.num_lines + 1
        segments = await self._service.workers.run(lambda: self._check.add(self._lines))
        await self._batches.add_lines(self._file_id, first, self._lines, self._check.num_bytes)
        for index, offsets in enumerate(segments, (first - 1) // SEGMENT_LINES):
            await self._batches.put_order(self._file_id, index, offsets)

    async def _finish(self, reader: UploadReader) -> FileRecord:
        self._lines += self._splitter.end()
        await self._write()
        _check_purpose(reader.fields.get("purpose"))
        warn_all(sorted(reader.ignored))
        expires_s = kept_s(form_expiry(reader.fields), self._batches.retention_s, "expires_after")
        url, offsets = await self._service.workers.run(self._check.finish)
        await self._batches.put_order(self._file_id, self._check.num_lines // SEGMENT_LINES, offsets)
        return await self._batches.finish_file(self._file_id, url, expires_s)

    async def _remove(self) -> None:
        """Deletes the file of an upload that has failed."""
        if self._file_id:
            with suppress(StoreUnavailableError):
                await self._batches.files.write(FILES.hide, self._file_id)
                await self._batches.files.write(FILES.remove_object, self._file_id)


def _check_purpose(purpose: str | None) -> None:
    if purpose != "batch":
        raise bad_value("purpose", f'purpose must be "batch", got {purpose!r}')


def _described(record: FileRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "object": "file",
        "bytes": record.num_bytes,
        "created_at": int(record.created),
        "expires_at": None if record.expires is None else int(record.expires),
        "filename": record.name,
        "purpose": record.purpose,
        "status": "processed",
    }


def form_expiry(fields: Mapping[str, str]) -> ExpiresAfter | None:
    """Returns the `expires_after` of a form, which has one field per value; None if the form has none.

    Raises:
      ApiError: A value is wrong or missing.
    """
    sent: dict[str, Any] = {EXPIRY_FIELDS[name]: value for name, value in fields.items() if name in EXPIRY_FIELDS}
    if not sent:
        return None
    try:
        return ExpiresAfter.model_validate_strings(sent, strict=False)
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
