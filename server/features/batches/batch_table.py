"""Batches and their lines, whose work replicas share: records, and all statements, as functions of a transaction.

A batch begins as a range of lines, whose places follow the run order of its input. `end` removes a line from the shared
work and stores the output line in one transaction, so that each line of the input has one line of output. The end of a
batch's last line completes the batch's files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import batched
from typing import Final

from ...database.database import Transaction, placeholders
from ...database.group_commit import Work
from ...database.schema import Tables, Upgrade
from ...storage import claims
from ...storage.claims import Claimant, Places
from ...storage.objects import ObjectTable
from ...storage.work import IS_OWNED, KEY, Claim, Lease, WorkTable
from . import file_table
from .batch_lines import LineResult
from .file_table import FILES, LINES, ORDER, FileRecord

_MAX_EXPIRED: Final = 1000
"""Maximum number of batches that one transaction deletes."""

_MAX_COUNTED: Final = 100_000
"""Maximum number of rows that are counted for a metric."""

_MAX_BATCHES: Final = 4
"""Maximum number of expired batches from which a replica claims lines at a time."""

_IS_EXPIRED: Final = """
    (tenant, id) IN (SELECT tenant, id FROM roost_batches WHERE status = 'in_progress' AND expires < {now})
"""


class BatchStatus(StrEnum):
    """Status of a batch, with OpenAI's values."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch.

    Attributes:
      model: Identity of the model; only replicas that serve the same model run the batch's lines.
      url: Endpoint of its lines.
      input_file, output_file, error_file: Ids of its files. After the batch has ended, the output and error files exist
      if they have a line.
      time_window: The client's `completion_window`.
      metadata: JSON of the client's metadata.
      created, expires: Times, in seconds since 1970.
      ended: Time at which it reached its final status; None while it is in progress.
      num_lines: Number of lines of its input.
      num_completed: Number of lines with a successful response.
      num_failed: Number of lines with an error.
      output_expires_s: Seconds between the batch's end and the deletion of its files; None applies the store's
        retention period.
      input_tokens, cached_tokens, output_tokens: Token counts of the responses of its lines.
    """

    tenant: str
    id: str
    status: BatchStatus
    model: str
    url: str
    input_file: str
    output_file: str
    error_file: str
    time_window: str
    metadata: bytes
    created: float = 0.0
    expires: float = 0.0
    ended: float | None = None
    num_lines: int = 0
    num_completed: int = 0
    num_failed: int = 0
    output_expires_s: float | None = None
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class BatchTotals:
    """Counts of batches of all replicas and tenants, for metrics.

    Attributes:
      batches: Number of batches by status.
      waiting_lines: Number of lines of batches in progress that have not ended.
      running_lines: Number of these lines that a replica has claimed.
      oldest_s: Age of the oldest batch in progress, in seconds; 0 if no batch is in progress.
      needed_lines_per_s: Rate at which lines must end so that each batch in progress ends in its window.
    """

    batches: dict[str, int] = field(default_factory=dict)
    waiting_lines: int = 0
    running_lines: int = 0
    oldest_s: float = 0.0
    needed_lines_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LineClaim:
    """A line that a replica has claimed.

    Attributes:
      data: The line of the input.
      model: Identity of its batch's model.
      is_expired: Whether its batch has passed its completion window. Such a line does not run any more.
    """

    claim: Claim
    data: bytes
    model: str
    is_expired: bool

    @property
    def lease(self) -> Lease:
        """Right to end the line."""
        return self.claim.lease


LINE_WORK: Final = WorkTable("roost_lines")
"""Claimed lines, and ranges of lines."""

BATCHES: Final = ObjectTable(
    "roost_batches",
    BatchRecord,
    extra={"output_bytes": int, "error_bytes": int},
    indexes={
        "list": "(tenant, created, id)",
        "ended": "(created) WHERE status <> 'in_progress'",
        "statuses": "(status, tenant)",
        "inputs": "(tenant, input_file) WHERE status = 'in_progress'",
        "expiries": "(expires) WHERE status = 'in_progress'",
    },
)

_TABLES: Final = (FILES, LINES, ORDER, BATCHES, LINE_WORK)

TABLES: Final = Tables("batches", (Upgrade([text for each in _TABLES for text in each.statements], 7),), first=7)
"""Tables of files and batches."""


def insert(transaction: Transaction, batch: BatchRecord, window_s: float) -> BatchRecord | None:
    """Stores a new batch, whose lines may then be claimed, and returns it with its times.

    Args:
      window_s: Seconds until it expires.

    Returns:
      The batch; None if its input was deleted.
    """
    if not _locked_file(transaction, batch.tenant, batch.input_file):
        return None
    if BATCHES.insert(transaction, batch, created="{now}", expires=f"{{now}} + {float(window_s)}"):
        LINE_WORK.add_range(transaction, batch.tenant, batch.id, batch.model, batch.num_lines)
    return BATCHES.find(transaction, batch.tenant, batch.id)


def hide_file(transaction: Transaction, tenant: str, file_id: str) -> bool:
    """Hides a file unless a batch in progress reads it; returns whether it is hidden."""
    query = "SELECT 1 FROM roost_batches WHERE tenant = ? AND input_file = ? AND status = 'in_progress' LIMIT 1"
    if _locked_file(transaction, tenant, file_id) and transaction.rows(query, tenant, file_id):
        return False
    FILES.hide(transaction, tenant, file_id)
    return True


def _locked_file(transaction: Transaction, tenant: str, file_id: str) -> bool:
    """Locks a complete file, so that it is not deleted while a batch of it is created; returns whether it exists."""
    query = "SELECT 1 FROM roost_files WHERE tenant = ? AND id = ? AND is_whole = 1 AND created > 0 {lock}"
    return bool(transaction.rows(query, tenant, file_id))


def cancel(transaction: Transaction, tenant: str, batch_id: str) -> BatchRecord | None:
    """Cancels a batch that is in progress, and returns it; None if it does not exist. Later writes for its lines are
    refused.
    """
    locked = transaction.rows("SELECT status FROM roost_batches WHERE tenant = ? AND id = ? {lock}", tenant, batch_id)
    if locked and locked[0][0] == BatchStatus.IN_PROGRESS:
        LINE_WORK.drop(transaction, tenant, batch_id)
        _close(transaction, tenant, batch_id, BatchStatus.CANCELLED)
    return BATCHES.find(transaction, tenant, batch_id)


def expire(transaction: Transaction, max_age_s: float) -> None:
    """Deletes the oldest ended batches of at least this age, a limited number at a time."""
    transaction.execute(
        """
        WITH old AS (
            SELECT tenant, id FROM roost_batches WHERE status <> 'in_progress' AND created < {now} - ?
            ORDER BY created LIMIT ? {skip_locked})
        DELETE FROM roost_batches WHERE (tenant, id) IN (SELECT tenant, id FROM old)
        """,  # PostgreSQL may run a subquery of IN several times, and each time finds other unlocked rows
        max_age_s,
        _MAX_EXPIRED,
    )


def totals(transaction: Transaction) -> BatchTotals:
    """Returns the counts for metrics. Each count stops at 100,000, which bounds the time of the statements."""
    query = "(SELECT count(*) FROM (SELECT 1 FROM roost_batches WHERE status = '{}' LIMIT {}) AS counted)"
    counts = ", ".join(query.format(status, _MAX_COUNTED) for status in BatchStatus)
    (statuses,) = transaction.rows(f"SELECT {counts}")
    ((lines, oldest, needed),) = transaction.rows(
        """
        SELECT coalesce(sum(unfinished), 0), coalesce(max({now} - created), 0),
            coalesce(sum(unfinished / CASE WHEN expires > {now} + 1 THEN expires - {now} ELSE 1.0 END), 0)
        FROM (
            SELECT num_lines - num_completed - num_failed AS unfinished, created, expires FROM roost_batches
            WHERE status = 'in_progress' LIMIT ?) AS counted
        """,
        _MAX_COUNTED,
    )
    found = {status.value: int(count) for status, count in zip(BatchStatus, statuses, strict=True) if count}
    return BatchTotals(found, int(lines), LINE_WORK.count(transaction, IS_OWNED), float(oldest), float(needed))


class LineTable(WorkTable):
    """Lines of batches. A tenant without room for output gets none.

    Attributes:
      max_bytes: Maximum bytes of a tenant's files.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__(LINE_WORK.name)
        self.max_bytes = max_bytes

    def has_room(self, transaction: Transaction, tenant: str) -> bool:
        return file_table.kept_by(transaction, tenant).num_bytes < self.max_bytes

    def numbers_at(self, transaction: Transaction, name: tuple[str, str], first: int, end: int) -> Sequence[int]:
        query = "SELECT input_file FROM roost_batches WHERE tenant = ? AND id = ?"
        ((input_file,),) = transaction.rows(query, *name)
        return file_table.numbers_at(transaction, name[0], input_file, first, end)

    def claim(self, transaction: Transaction, owner: str, model: str, places: Places) -> list[LineClaim]:
        """Claims lines of any tenant for a replica."""
        return _lines(transaction, claims.claim(transaction, self, Claimant(owner, model), places))

    def claim_expired(self, transaction: Transaction, owner: str, limit: int) -> list[LineClaim]:
        """Claims lines of expired batches of any model. Such lines do not run any more.

        Args:
          limit: Maximum number of lines.
        """
        due = transaction.rows(
            f"""
            SELECT {KEY} FROM {LINE_WORK.name} WHERE is_range = 0 AND lease_until <= {{now}} AND {_IS_EXPIRED}
            ORDER BY lease_until LIMIT ? {{skip_locked}}
            """,
            limit,
        )
        found = self.take(transaction, owner, due)
        ranges = transaction.rows(
            f"""
            SELECT tenant, id, model, next_unit, num_units FROM {LINE_WORK.name} WHERE number = 0 AND {_IS_EXPIRED}
            LIMIT ? {{skip_locked}}
            """,
            min(limit - len(found), _MAX_BATCHES),
        )
        return _lines(transaction, found + self.take_new(transaction, owner, ranges, limit - len(found)))


def _lines(transaction: Transaction, found: Sequence[Claim]) -> list[LineClaim]:
    """Returns the lines that were claimed, except lines whose batch or file was deleted."""
    if not found:
        return []
    rows = transaction.rows(
        f"""
        SELECT claimed.tenant, claimed.id, claimed.number, line, roost_batches.model, expires < {{now}}
        FROM {LINE_WORK.name} AS claimed
        JOIN roost_batches ON roost_batches.tenant = claimed.tenant AND roost_batches.id = claimed.id
        JOIN roost_file_lines ON roost_file_lines.tenant = claimed.tenant AND file = input_file
            AND roost_file_lines.number = claimed.number
        WHERE (claimed.tenant, claimed.id, claimed.number) IN (VALUES {placeholders(len(found), 3)})
        """,
        *(value for claim in found for value in claim.lease[:3]),
    )
    lines = {tuple(name): (bytes(line), model, bool(is_expired)) for *name, line, model, is_expired in rows}
    return [LineClaim(claim, *lines[claim.lease[:3]]) for claim in found if claim.lease[:3] in lines]


@dataclass(frozen=True, slots=True)
class LineEnd:
    """Write of a line's result."""

    lease: Lease
    result: LineResult

    def __call__(self, transaction: Transaction) -> bool:
        """Stores the result; returns whether the replica was still the line's owner."""
        return bool(end(transaction, {self.lease: self.result}))


def end_all(transaction: Transaction, works: Sequence[Work[bool]]) -> list[bool]:
    """Stores the results of all lines of a transaction; see `end`."""
    ends = [each for each in works if isinstance(each, LineEnd)]
    held = end(transaction, {each.lease: each.result for each in ends})
    return [each.lease in held for each in ends]


def end(transaction: Transaction, results: Mapping[Lease, LineResult]) -> set[Lease]:
    """Stores the results of lines. A batch ends with its last line.

    All lines share a few statements: after each statement, this thread waits for the interpreter lock, which the
    engine's thread holds most of the time.

    Args:
      results: At least one result.

    Returns:
      The leases whose holders were still the owners. Other results are not stored: another replica has claimed the
      line, or the batch has ended.
    """
    names = sorted({lease[:2] for lease in results})
    # Batches are locked in one order, and before claims as in `cancel`, so that replicas never block each other.
    locked = transaction.rows(
        f"""
        SELECT tenant, id, output_file, error_file FROM roost_batches
        WHERE (tenant, id) IN (VALUES {placeholders(len(names), 2)}) ORDER BY tenant, id {{lock}}
        """,
        *(value for name in names for value in name),
    )
    held = LINE_WORK.end(transaction, list(results))
    for tenant, batch, output_file, error_file in locked:
        own = {lease.number: results[lease] for lease in held if lease[:2] == (tenant, batch)}
        if own:
            files = {False: output_file, True: error_file}
            rows = ((tenant, files[result.is_failed], number, result.line) for number, result in own.items())
            LINES.put(transaction, rows)
            _count(transaction, tenant, batch, list(own.values()))
    return held


def _count(transaction: Transaction, tenant: str, batch_id: str, results: Sequence[LineResult]) -> None:
    """Adds results to the counts of a batch, and ends the batch if they are the last."""
    sizes = {failed: [len(each.line) for each in results if each.is_failed is failed] for failed in (False, True)}
    ((is_over, status),) = transaction.rows(
        """
        UPDATE roost_batches SET num_completed = num_completed + ?, output_bytes = output_bytes + ?,
            num_failed = num_failed + ?, error_bytes = error_bytes + ?,
            input_tokens = input_tokens + ?, cached_tokens = cached_tokens + ?, output_tokens = output_tokens + ?
        WHERE tenant = ? AND id = ?
        RETURNING num_completed + num_failed = num_lines, CASE WHEN expires < {now} THEN 'expired' ELSE 'completed' END
        """,
        *(value for each in sizes.values() for value in (len(each), sum(each))),
        *map(sum, zip(*(each.usage for each in results), strict=True)),
        tenant,
        batch_id,
    )
    if is_over:
        _close(transaction, tenant, batch_id, BatchStatus(status))


def _close(transaction: Transaction, tenant: str, batch_id: str, status: BatchStatus) -> None:
    """Ends a batch, and completes its files that have at least one line."""
    ((expires_s, *files),) = transaction.rows(
        """
        UPDATE roost_batches SET status = ?, ended = {now} WHERE tenant = ? AND id = ? RETURNING output_expires_s,
            'output', output_file, output_bytes, num_completed, 'error', error_file, error_bytes, num_failed
        """,
        status.value,
        tenant,
        batch_id,
    )
    for kind, file_id, num_bytes, num_lines in batched(files, 4):
        if num_lines:
            name = f"{batch_id}_{kind}.jsonl"
            file = FileRecord(tenant, file_id, 0.0, "batch_output", name, num_bytes, num_lines)
            FILES.insert(transaction, file, created="{now}")
            file_table.finish(transaction, tenant, file_id, expires_s=expires_s)
