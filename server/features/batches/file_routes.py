"""`/v1/files`: inputs of batches, and their results."""

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from ...database.errors import StoreUnavailableError
from ...errors.request_errors import bad_value
from ...errors.request_warnings import warn_all
from ...generation.admission import admission
from ...generation.service import Service
from ...http.multipart import UploadReader
from ...http.paging import After, QueryOrder, described, no_such_entry
from ...http.routes import AnyService, JsonRoute, refuse_encoding
from ...openai.response_schemas import DeletedObject
from ...storage.objects import PageSpec
from .batch_input import InputCheck, LineSplitter
from .batch_records import FileRecord
from .batch_store import BatchStore
from .expiry import EXPIRY_FIELDS, form_expiry, kept_s
from .file_table import SEGMENT_LINES
from .open_batches import Batches
from .schemas import FileList, FileObject

PATH: Final = "/v1/files"

MAX_FILE_BYTES: Final = 2 * 2**30
"""Maximum bytes of an uploaded file."""

_JSONL: Final = "application/jsonl"

_WRITE_BYTES: Final = 2**20
"""Bytes of lines that are checked and written at a time."""

router = APIRouter(route_class=JsonRoute)


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
    refuse_encoding(request.headers)
    async with batches.uploads.hold():
        return _described(await _receive(request, service, batches))


@router.get(PATH, response_model=FileList)
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
    found = await batches.files(PageSpec(limit, after, order == "desc"), purpose)
    if found is None:
        raise no_such_entry(after)
    return described(found, id_of=lambda each: each.id, describe=_described)


@router.get("/v1/files/{file_id}", response_model=FileObject)
async def get_file(file_id: str, batches: Batches) -> dict[str, Any]:
    """Describes a file."""
    return _described(await batches.file(file_id))


@router.get(
    "/v1/files/{file_id}/content",
    response_class=StreamingResponse,
    responses={200: {"description": "Lines of the file.", "content": {_JSONL: {"schema": {"type": "string"}}}}},
)
async def get_file_content(file_id: str, batches: Batches) -> Response:
    """Returns the lines of a file."""
    record = await batches.file(file_id)
    pieces = batches.content(record)
    first = await anext(pieces, b"")  # before the status, so that an unavailable database is a 503
    headers = {"content-length": str(record.num_bytes)}
    return StreamingResponse(_prepended(first, pieces), headers=headers, media_type=_JSONL)


async def _prepended(first: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yields a piece that was taken from an iterator, then the iterator's remaining pieces."""
    yield first
    async for piece in pieces:
        yield piece


@router.delete("/v1/files/{file_id}")
async def delete_file(file_id: str, batches: Batches) -> DeletedObject:
    """Deletes a file that no batch in progress reads."""
    await batches.delete_file(file_id)
    return DeletedObject(id=file_id, object="file", deleted=True)


async def _receive(request: Request, service: Service, batches: BatchStore) -> FileRecord:
    """Writes the lines of an upload to the store. If the upload fails, the written lines are deleted.

    Raises:
      ApiError: The body is not a form with a file of requests, or the tenant has no room for it.
    """
    reader = UploadReader(request.headers.get("content-type", ""), MAX_FILE_BYTES)
    max_body_bytes = service.admissions.max_body_bytes
    splitter, check, file_id = LineSplitter(max_body_bytes), InputCheck(max_body_bytes, admission.get().parse_now), ""
    lines: list[bytes] = []
    try:
        async for piece in reader.pieces(request):
            if not file_id:
                _check_purpose(reader.fields.get("purpose", "batch"))
                file_id = await batches.begin_file(reader.filename or "file")
            lines += splitter.feed(piece)
            if sum(map(len, lines)) >= _WRITE_BYTES:
                await _add_lines(service, batches, file_id, check, lines)
                lines = []
        lines += splitter.end()
        file_id = file_id or await batches.begin_file(reader.filename or "file")
        await _add_lines(service, batches, file_id, check, lines)
        _check_purpose(reader.fields.get("purpose"))
        warn_all(sorted(reader.fields.keys() - {"purpose", *EXPIRY_FIELDS}))
        expires_s = kept_s(form_expiry(reader.fields), batches.retention_s, "expires_after")
        return await _finish_lines(service, batches, file_id, check, expires_s)
    except BaseException:
        if file_id:
            with suppress(StoreUnavailableError):
                await batches.drop_file(file_id)
        raise


async def _add_lines(
    service: Service, batches: BatchStore, file_id: str, check: InputCheck, lines: Sequence[bytes]
) -> None:
    """Checks the next lines of a file, and writes them.

    Raises:
      ApiError: A line is not a request, or the tenant has no room for them.
    """
    first = check.num_lines + 1
    segments = await service.workers.run(lambda: check.add(lines))
    await batches.add_lines(file_id, first, lines, check.num_bytes)
    for index, offsets in enumerate(segments, (first - 1) // SEGMENT_LINES):
        await batches.put_order(file_id, index, offsets)


async def _finish_lines(
    service: Service, batches: BatchStore, file_id: str, check: InputCheck, expires_s: float | None = None
) -> FileRecord:
    """Marks a file as complete, and returns it.

    Raises:
      ApiError: The file has no line, or a `custom_id` occurs twice.
    """
    url, offsets = await service.workers.run(check.finish)
    if offsets:
        await batches.put_order(file_id, check.num_lines // SEGMENT_LINES, offsets)
    return await batches.finish_file(file_id, check.num_lines, check.num_bytes, url, expires_s)


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
