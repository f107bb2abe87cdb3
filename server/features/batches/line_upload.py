"""Writes checked lines to a file of the store, and the order in which the lines run."""

from collections.abc import Sequence

from ...generation.service import Service
from .batch_input import InputCheck
from .batch_records import FileRecord
from .batch_store import BatchStore
from .file_table import SEGMENT_LINES


async def add_lines(
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


async def finish_lines(
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
