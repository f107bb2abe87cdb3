"""All statements on stored files, as functions of a transaction, and the limits on a tenant's files and batches.

A file is a sequence of numbered lines.

The run order of an input's lines is stored by segments: for each place of a segment, the line's offset from the
segment's first line, in two bytes.

The limits apply to sums over a tenant's files and its batches in progress. Without API keys there is one tenant, and
the limits apply to the whole server.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import uuid4

from ...database.database import Transaction
from ...errors import kinds
from ...errors.request_errors import ApiError
from ...storage.objects import Name, ObjectTable, Table

SEGMENT_LINES: Final = 2**16
"""Number of lines of a segment. Lines run in the segments' order."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A stored file of lines.

    Attributes:
      created: Seconds since 1970.
      purpose: "batch" for an input, "batch_output" for an output.
      name: Name that the client gave.
      num_bytes: Size of all lines.
      num_lines: Number of lines.
      url: Endpoint of all lines of an input; empty for an output, and for an input whose lines name several.
      expires: Deletion time, in seconds since 1970; None applies the store's retention period.
    """

    tenant: str
    id: str
    created: float
    purpose: str
    name: str
    num_bytes: int
    num_lines: int
    url: str = ""
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a file.

    Attributes:
      number: Its number in the file, from 1.
      line: The line with its newline.
    """

    number: int
    line: bytes


@dataclass(frozen=True, slots=True)
class _Segment:
    """Run order of a segment of an input's lines.

    Attributes:
      segment: Index of the segment.
      offsets: For each place, the offset of the line that runs there.
    """

    segment: int
    offsets: bytes


_OF_FILE: Final = {"tenant": str, "file": str}

LINES: Final = Table("roost_file_lines", _Line, key=("tenant", "file", "number"), under=_OF_FILE)
ORDER: Final = Table("roost_file_order", _Segment, key=("tenant", "file", "segment"), under=_OF_FILE)
FILES: Final = ObjectTable(
    "roost_files",
    FileRecord,
    extra={"is_whole": bool},
    visible="is_whole = 1 AND created > 0 AND (expires IS NULL OR expires >= {now})",
    indexes={
        "list": "(tenant, created, id) WHERE is_whole = 1",
        "purposes": "(tenant, purpose, created, id) WHERE is_whole = 1",
        "age": "(created)",
        "unfinished": "(created) WHERE is_whole = 0",
        "expiries": "(expires) WHERE expires IS NOT NULL",
        "sizes": "(tenant, num_bytes, num_lines)",
    },
    parts=(LINES, ORDER),
)


_IS_READ: Final = """
    EXISTS (SELECT 1 FROM roost_batches WHERE roost_batches.tenant = roost_files.tenant
        AND roost_batches.input_file = roost_files.id AND roost_batches.status = 'in_progress')
"""
"""Condition of files that a batch in progress reads."""

_ABANDONED_S: Final = 3600.0
"""Seconds after which an unfinished upload is deleted."""

_PAGE_LINES: Final = 1000
"""Maximum number of lines that are read at a time."""

MAX_PAGE_BYTES: Final = 2**20
"""Number of bytes after which a page of lines ends."""


def begin(transaction: Transaction, tenant: str, file_id: str, purpose: str, name: str) -> None:
    """Stores an empty file, which is found only after it is complete."""
    FILES.insert(transaction, FileRecord(tenant, file_id, 0.0, purpose, name, 0, 0), created="{now}")


def add_lines(
    transaction: Transaction, tenant: str, file_id: str, first: int, lines: Sequence[bytes], num_bytes: int
) -> None:
    """Adds lines to an incomplete file, and stores its size. Calling it again has no effect.

    Args:
      first: Number of the first line, from 1.
      lines: Lines with their newlines.
      num_bytes: Size of the file with these lines.
    """
    LINES.put(transaction, ((tenant, file_id, number, line) for number, line in enumerate(lines, first)))
    transaction.execute(
        "UPDATE roost_files SET num_lines = ?, num_bytes = ? WHERE tenant = ? AND id = ?",
        first - 1 + len(lines),
        num_bytes,
        tenant,
        file_id,
    )


def put_order(transaction: Transaction, tenant: str, file_id: str, segment: int, offsets: Sequence[int]) -> None:
    """Stores the order in which the lines of a segment run. The default is the file's order.

    Args:
      segment: Index of the segment.
      offsets: For each place, the index of the line that runs there, from the segment's first line.
    """
    ORDER.put(transaction, [(tenant, file_id, segment, struct.pack(f"<{len(offsets)}H", *offsets))])


def numbers_at(transaction: Transaction, tenant: str, file_id: str, first: int, end: int) -> list[int]:
    """Returns the numbers of the lines that run at some places.

    Args:
      first: First place, from 1.
      end: Place after the last one.
    """
    numbers: list[int] = []
    while first < end:
        segment, start = divmod(first - 1, SEGMENT_LINES)
        count = min(end - first, SEGMENT_LINES - start)
        rows = transaction.rows(
            "SELECT substr(offsets, ?, ?) FROM roost_file_order WHERE tenant = ? AND file = ? AND segment = ?",
            2 * start + 1,
            2 * count,
            tenant,
            file_id,
            segment,
        )
        offsets = struct.unpack(f"<{count}H", rows[0][0]) if rows else range(start, start + count)
        numbers += [segment * SEGMENT_LINES + 1 + offset for offset in offsets]
        first += count
    return numbers


def finish(
    transaction: Transaction, tenant: str, file_id: str, url: str = "", expires_s: float | None = None
) -> FileRecord | None:
    """Marks a file as complete and returns it; None if it was deleted before.

    Args:
      url: Endpoint of all lines of an input.
      expires_s: Seconds between its creation and its deletion; None applies the store's retention period.
    """
    transaction.execute(
        "UPDATE roost_files SET is_whole = 1, url = ?, expires = created + CAST(? AS DOUBLE PRECISION) "
        "WHERE tenant = ? AND id = ? AND created > 0",  # unless it was hidden before
        url,
        expires_s,
        tenant,
        file_id,
    )
    return FILES.find(transaction, tenant, file_id)


def lines(
    transaction: Transaction, tenant: str, file_id: str, after: int, max_bytes: int = MAX_PAGE_BYTES
) -> list[tuple[int, bytes]]:
    """Returns the next lines of a file with their numbers; none at its end.

    Args:
      after: Number of the line before the first line to return.
      max_bytes: Number of bytes after which the page ends.
    """
    last = LINES.end_of_page(transaction, (tenant, file_id), _PAGE_LINES, max_bytes, after)
    query = """
        SELECT number, line FROM roost_file_lines WHERE tenant = ? AND file = ? AND number > ? AND number <= ?
        ORDER BY number
    """
    return [(int(number), bytes(line)) for number, line in transaction.rows(query, tenant, file_id, after, last)]


def probe(transaction: Transaction) -> None:
    """Stores a file with a line, and deletes both, to find out whether the tables can be written."""
    file_id = f"probe-{uuid4().hex}"
    begin(transaction, "", file_id, "", "")
    add_lines(transaction, "", file_id, 1, [b"\n"], 1)
    FILES.remove_object(transaction, "", file_id)


def expire(transaction: Transaction, max_age_s: float, limit: int = 8) -> list[Name]:
    """Hides files that are too old or have expired, and abandoned uploads; returns their tenants and ids.

    Args:
      max_age_s: Age in seconds after which files are deleted, unless a batch in progress reads them.
      limit: Maximum number of files to hide at a time.
    """
    found = list[Name]()
    for condition, age_s in (
        ("is_whole = 0 AND created > 0 AND created < {now} - ? ORDER BY created", min(max_age_s, _ABANDONED_S)),
        (f"is_whole = 1 AND created > 0 AND created < {{now}} - ? AND NOT {_IS_READ} ORDER BY created", max_age_s),
        (f"is_whole = 1 AND created > 0 AND expires < {{now}} - ? AND NOT {_IS_READ} ORDER BY expires", 0.0),
    ):
        query = f"SELECT tenant, id FROM roost_files WHERE {condition} LIMIT ?"
        found += transaction.rows(query, age_s, limit - len(found))
    for tenant, file_id in found:
        FILES.hide(transaction, tenant, file_id)
    return found


MAX_FILES: Final = 10_000
"""Maximum number of files of a tenant, including files that its batches in progress will create."""

MAX_BATCHES: Final = 1_000
"""Maximum number of batches in progress of a tenant."""

MAX_LINES: Final = 10_000_000
"""Maximum number of lines of a tenant's files, plus one line of output for each line of its batches in progress."""

FILES_OF_BATCH: Final = 2
"""Number of files that a batch creates: one of outputs and one of errors."""


def full(num_bytes: int, max_bytes: int, num_new: int = 0) -> str:
    """Returns the message about files that have reached the maximum number of bytes.

    Args:
      num_new: Number of bytes of a file that would exceed it.
    """
    new = f", the file at least {num_new:,} more" if num_new > 1 else ""
    return (
        f"the files of this API key and the output of its batches take {num_bytes:,} bytes{new}, and may take "
        f"{max_bytes:,} (--store-gib, or a share of 256 MiB without --store): delete some files"
    )


def check_quota(
    transaction: Transaction,
    tenant: str,
    max_bytes: int,
    *,
    num_files: int = 0,
    num_batches: int = 0,
    num_lines: int = 0,
    num_bytes: int = 0,
) -> None:
    """Checks that a tenant is within its limits.

    Running uploads count, and so do deleted files until they are removed.

    Args:
      max_bytes: Maximum bytes of its files, and of the results of its batches in progress.
      num_files, num_batches, num_lines, num_bytes: What is about to be added.

    Raises:
      ApiError: 403, a limit is exceeded.
    """
    kept = kept_by(transaction, tenant)
    num_batches += kept.num_batches
    if num_files + kept.num_files + FILES_OF_BATCH * num_batches > MAX_FILES:
        excess = f"an API key may keep {MAX_FILES:,} files, two of each batch in progress included: delete some"
    elif num_batches > MAX_BATCHES:
        excess = f"an API key may have {MAX_BATCHES:,} batches in progress: wait for some of them, or cancel some"
    elif num_lines + kept.num_lines > MAX_LINES:
        excess = f"the files and batches of an API key may have {MAX_LINES:,} lines together: delete some files"
    elif num_bytes + kept.num_bytes > max_bytes:
        excess = full(kept.num_bytes, max_bytes, num_bytes)
    else:
        return
    raise ApiError(kinds.QUOTA_EXCEEDED, excess)


class TenantTotals(NamedTuple):
    """Files and batches of a tenant.

    Attributes:
      num_files: Number of files.
      num_batches: Number of batches in progress.
      num_lines: Number of lines of these files, and of the inputs of these batches.
      num_bytes: Bytes of these files, and of the results of these batches.
    """

    num_files: int
    num_batches: int
    num_lines: int
    num_bytes: int


def kept_by(transaction: Transaction, tenant: str) -> TenantTotals:
    """Returns the numbers of a tenant's files and batches."""
    query = """
        SELECT num_files, num_batches, files.num_lines + batches.num_lines, files.num_bytes + batches.num_bytes FROM
            (SELECT count(*) AS num_files, coalesce(sum(num_lines), 0) AS num_lines,
                coalesce(sum(num_bytes), 0) AS num_bytes FROM roost_files WHERE tenant = ?) AS files,
            (SELECT count(*) AS num_batches, coalesce(sum(num_lines), 0) AS num_lines,
                coalesce(sum(output_bytes + error_bytes), 0) AS num_bytes
            FROM roost_batches WHERE tenant = ? AND status = 'in_progress') AS batches
    """
    return TenantTotals(*map(int, transaction.rows(query, tenant, tenant)[0]))
