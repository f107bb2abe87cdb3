"""`/v1/files`: input of batches, and what they have ended with."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from ...database.errors import StoreUnavailableError
from ...errors.request_errors import bad_value
from ...errors.request_warnings import warn
from ...generation.service import Service
from ...http.multipart import UploadReader
from ...http.paging import After, QueryOrder, page
from ...http.routes import AnyService, JsonRoute, refuse_encoding
from ...openai.response_schemas import DeletedObject
from .batch_input import InputCheck, LineSplitter
from .batch_records import FileRecord
from .batch_store import BatchStore
from .file_table import SEGMENT_LINES
from .open_batches import Batches
from .schemas import FileList, FileObject

PATH: Final = "/v1/files"

MAX_FILE_BYTES: Final = 2 * 2**30
"""Maximum bytes of an uploaded file."""

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
    files = [each for each in await batches.files() if purpose in (None, each.purpose)]
    return page(files, limit, order, after, id_of=lambda each: each.id, describe=_described)


@router.get("/v1/files/{file_id}", response_model=FileObject)
async def get_file(file_id: str, batches: Batches) -> dict[str, Any]:
    """Describes a file."""
    return _described(await batches.file(file_id))


@router.get("/v1/files/{file_id}/content")
async def get_file_content(file_id: str, batches: Batches) -> Response:
    """Returns the lines of a file."""
    record = await batches.file(file_id)
    headers = {"content-length": str(record.num_bytes)}
    return StreamingResponse(batches.content(record), headers=headers, media_type="application/jsonl")


@router.delete("/v1/files/{file_id}")
async def delete_file(file_id: str, batches: Batches) -> DeletedObject:
    """Deletes a file that no batch in progress reads."""
    await batches.delete_file(file_id)
    return DeletedObject(id=file_id, object="file", deleted=True)


async def _receive(request: Request, service: Service, batches: BatchStore) -> FileRecord:
    """Writes the lines of an upload to the store. What was written is deleted if the upload fails.

    Raises:
      ApiError: The body is not a form with a file of requests.
    """
    reader = UploadReader(request.headers.get("content-type", ""), MAX_FILE_BYTES)
    max_body_bytes: int = request.app.state.max_body_bytes
    splitter, check, file_id = LineSplitter(max_body_bytes), InputCheck(max_body_bytes), ""
    lines: list[bytes] = []
    try:
        async for piece in reader.pieces(request):
            if not file_id:
                _check_purpose(reader.fields.get("purpose", "batch"))
                file_id = await batches.begin_file(reader.filename or "file")
            lines += splitter.feed(piece)
            if sum(map(len, lines)) >= _WRITE_BYTES:
                await _add(service, batches, file_id, check, lines)
                lines = []
        lines += splitter.end()
        file_id = file_id or await batches.begin_file(reader.filename or "file")
        await _add(service, batches, file_id, check, lines)
        _check_purpose(reader.fields.get("purpose"))
        _check_others(reader.fields.keys() - {"purpose"})
        return await _finish(service, batches, file_id, check)
    except BaseException:
        if file_id:
            with suppress(StoreUnavailableError):
                await batches.drop_file(file_id)
        raise


def _check_purpose(purpose: str | None) -> None:
    if purpose != "batch":
        raise bad_value("purpose", f'purpose must be "batch", got {purpose!r}')


def _check_others(names: Iterable[str]) -> None:
    """Reports fields of the form that are unknown.

    Raises:
      ApiError: A field asks for the file's end, which is the same for all files.
    """
    for name in sorted(names):
        if name.startswith("expires_after"):
            raise bad_value("expires_after", "expires_after is not supported: files are kept for --store-days")
        warn(name)


async def _add(service: Service, batches: BatchStore, file_id: str, check: InputCheck, lines: list[bytes]) -> None:
    first = check.num_lines + 1
    segments = await service.workers.run(lambda: check.add(lines))
    await batches.add_lines(file_id, first, lines)
    for index, offsets in enumerate(segments, (first - 1) // SEGMENT_LINES):
        await batches.put_order(file_id, index, offsets)


async def _finish(service: Service, batches: BatchStore, file_id: str, check: InputCheck) -> FileRecord:
    url, offsets = await service.workers.run(check.finish)
    if offsets:
        await batches.put_order(file_id, check.num_lines // SEGMENT_LINES, offsets)
    return await batches.finish_file(file_id, check.num_lines, check.num_bytes, url)


def _described(record: FileRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "object": "file",
        "bytes": record.num_bytes,
        "created_at": int(record.created),
        "filename": record.name,
        "purpose": record.purpose,
        "status": "processed",
    }
