"""All statements on stored files, as functions of a transaction. A file is a sequence of numbered lines.

The lines of an input run in an order of their own, which is stored by segments: for each place of a segment, the line's
offset from the segment's first line, in two bytes.
"""

import struct
from collections.abc import Sequence
from itertools import batched
from typing import Any, Final

from ...database.database import Transaction, placeholders
from .batch_records import FileRecord

SEGMENT_LINES: Final = 2**16
"""Number of lines of a segment. Lines run in the segments' order."""

_FILE: Final = "tenant, id, created, purpose, name, num_bytes, num_lines, url"

_ABANDONED_S: Final = 3600.0
"""Seconds after which a file is deleted whose upload has not ended."""

_MAX_BYTES: Final = 2**20
"""Maximum bytes of lines that are read at a time, but for the first line."""

_MAX_INSERTED: Final = 1000
"""Maximum number of lines that one statement adds; SQLite takes 32,766 values, and PostgreSQL 65,535."""

_MAX_DELETED: Final = 2000
"""Maximum number of lines that one transaction deletes."""


def begin(transaction: Transaction, tenant: str, file_id: str, purpose: str, name: str) -> None:
    """Stores an empty file, which is found only once it is whole."""
    transaction.execute(
        """
        INSERT INTO roost_files (tenant, id, created, purpose, name, num_bytes, num_lines, url, is_whole)
        VALUES (?, ?, {now}, ?, ?, 0, 0, ?, 0) ON CONFLICT (tenant, id) DO NOTHING
        """,
        tenant,
        file_id,
        purpose,
        name,
        "",
    )


def add_lines(transaction: Transaction, tenant: str, file_id: str, first: int, lines: Sequence[bytes]) -> None:
    """Adds lines to a file that is not whole. Repeating it changes nothing.

    Args:
      first: Number of the first line, from 1.
      lines: Lines with their newlines.
    """
    put_lines(transaction, tenant, [(file_id, number, line) for number, line in enumerate(lines, first)])


def put_lines(transaction: Transaction, tenant: str, lines: Sequence[tuple[str, int, bytes]]) -> None:
    """Adds lines with their newlines, each unless its file has a line of its number.

    Args:
      lines: Each line with its file and its number.
    """
    for some in batched(lines, _MAX_INSERTED):
        transaction.execute(
            f"""
            INSERT INTO roost_file_lines (tenant, file, number, line) VALUES {placeholders(len(some), 4)}
            ON CONFLICT (tenant, file, number) DO NOTHING
            """,
            *(value for line in some for value in (tenant, *line)),
        )


def put_order(transaction: Transaction, tenant: str, file_id: str, segment: int, offsets: Sequence[int]) -> None:
    """Stores the order in which the lines of a segment run. Without it they run in the file's order.

    Args:
      segment: Index of the segment.
      offsets: For each place, the index of the line that runs there, from the segment's first line.
    """
    transaction.execute(
        """
        INSERT INTO roost_file_order (tenant, file, segment, offsets) VALUES (?, ?, ?, ?)
        ON CONFLICT (tenant, file, segment) DO NOTHING
        """,
        tenant,
        file_id,
        segment,
        struct.pack(f"<{len(offsets)}H", *offsets),
    )


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
    transaction: Transaction, tenant: str, file_id: str, num_lines: int, num_bytes: int, url: str = ""
) -> FileRecord | None:
    """Makes a file whole and returns it; None if it was deleted meanwhile.

    Args:
      num_lines: Number of its lines.
      num_bytes: Size of all its lines. Adding it up here would take longer than a transaction may.
      url: Endpoint of all lines of an input.
    """
    transaction.execute(
        "UPDATE roost_files SET is_whole = 1, num_lines = ?, num_bytes = ?, url = ? "
        "WHERE tenant = ? AND id = ? AND created > 0",  # unless it was hidden meanwhile
        num_lines,
        num_bytes,
        url,
        tenant,
        file_id,
    )
    return find(transaction, tenant, file_id)


def find(transaction: Transaction, tenant: str, file_id: str) -> FileRecord | None:
    """Returns a whole file; None if there is none."""
    rows = transaction.rows(
        f"SELECT {_FILE} FROM roost_files WHERE tenant = ? AND id = ? AND is_whole = 1", tenant, file_id
    )
    return _record(rows[0]) if rows else None


def every(transaction: Transaction, tenant: str) -> list[FileRecord]:
    """Returns all whole files of a tenant, oldest first."""
    query = f"SELECT {_FILE} FROM roost_files WHERE tenant = ? AND is_whole = 1 ORDER BY created, id"
    return [_record(row) for row in transaction.rows(query, tenant)]


def total_bytes(transaction: Transaction, tenant: str) -> int:
    """Returns the size of all whole files of a tenant."""
    query = "SELECT coalesce(sum(num_bytes), 0) FROM roost_files WHERE tenant = ? AND is_whole = 1"
    ((num_bytes,),) = transaction.rows(query, tenant)
    return int(num_bytes)


def lines(transaction: Transaction, tenant: str, file_id: str, after: int, limit: int) -> list[tuple[int, bytes]]:
    """Returns the next lines of a file with their numbers; none at its end.

    Args:
      after: Number of the line that they follow.
      limit: Maximum number of lines.
    """
    rows = transaction.rows(
        """
        SELECT number, line FROM (
            SELECT number, line, sum(length(line)) OVER (ORDER BY number) - length(line) AS size_before FROM (
                SELECT number, line FROM roost_file_lines WHERE tenant = ? AND file = ? AND number > ?
                ORDER BY number LIMIT ?
            ) AS following
        ) AS counted
        WHERE size_before < ? ORDER BY number
        """,
        tenant,
        file_id,
        after,
        limit,
        _MAX_BYTES,
    )
    return [(int(number), bytes(line)) for number, line in rows]


def hide(transaction: Transaction, tenant: str, file_id: str) -> None:
    """Lets a file not be found any more. `remove` deletes it; `expired` names it if that was interrupted."""
    transaction.execute("UPDATE roost_files SET is_whole = 0, created = 0 WHERE tenant = ? AND id = ?", tenant, file_id)


def remove(transaction: Transaction, tenant: str, file_id: str, limit: int = _MAX_DELETED) -> bool:
    """Deletes the next lines of a hidden file, then the file; returns whether some are left."""
    deleted = transaction.execute(
        """
        DELETE FROM roost_file_lines WHERE tenant = ? AND file = ? AND number IN (
            SELECT number FROM roost_file_lines WHERE tenant = ? AND file = ? ORDER BY number LIMIT ?)
        """,
        tenant,
        file_id,
        tenant,
        file_id,
        limit,
    )
    if deleted.rowcount == limit:
        return True
    transaction.execute("DELETE FROM roost_file_order WHERE tenant = ? AND file = ?", tenant, file_id)
    transaction.execute("DELETE FROM roost_files WHERE tenant = ? AND id = ?", tenant, file_id)
    return False


def expired(transaction: Transaction, max_age_s: float, limit: int = 8) -> list[tuple[str, str]]:
    """Hides the oldest files and uploads that were given up; returns tenants and ids of hidden files.

    Args:
      max_age_s: Age from which on files are deleted, unless a batch in progress reads them.
      limit: Maximum number of files to delete at a time.
    """
    rows = transaction.rows(
        """
        SELECT tenant, id FROM roost_files
        WHERE (created < {now} - ? OR (is_whole = 0 AND created < {now} - ?)) AND NOT EXISTS (
            SELECT 1 FROM roost_batches WHERE roost_batches.tenant = roost_files.tenant
            AND roost_batches.input_file = roost_files.id AND roost_batches.status = 'in_progress')
        ORDER BY created LIMIT ?
        """,
        max_age_s,
        _ABANDONED_S,
        limit,
    )
    for tenant, file_id in rows:
        hide(transaction, tenant, file_id)
    return [(tenant, file_id) for tenant, file_id in rows]


def _record(row: Sequence[Any]) -> FileRecord:
    return FileRecord(*row)
