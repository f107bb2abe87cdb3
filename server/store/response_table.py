"""All statements on stored responses and their logs, as functions of a transaction.

The protocol of leases: `insert` makes the writer the owner under fencing number 1. Each write of an owner checks its
number and extends its lease. When a lease has ended, any replica that serves the same model may `claim` the response,
which gives it the next number. `seize` does so at once, to cancel. A response that has ended has no owner.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from .database import Transaction
from .errors import FencedError
from .records import Checkpoint, Claim, Job, Lease, LogEntry, ResponseRecord

LEASE_S: Final = 15.0
"""Seconds after an owner's last write from which on others may adopt its response."""

_MAX_ENTRIES: Final = 256
"""Maximum number of log entries that are read at a time."""

_RECORD: Final = "tenant, id, response, history, output, is_background, is_streamed, is_running"
_ENTRY: Final = "number, first_event, num_events, first_token, num_tokens, delta, events"
_HELD: Final = "tenant = ? AND id = ? AND fence = ? AND is_running = 1"


def find(transaction: Transaction, tenant: str, response_id: str) -> ResponseRecord | None:
    """Returns a response; None if there is none."""
    found = transaction.rows(f"SELECT {_RECORD} FROM roost_responses WHERE tenant = ? AND id = ?", tenant, response_id)
    return _record(found[0]) if found else None


def put(transaction: Transaction, record: ResponseRecord) -> None:
    """Stores a response that has ended and was not generated in the background."""
    _insert(transaction, record, None, "")


def insert(transaction: Transaction, record: ResponseRecord, job: Job, owner: str) -> Lease:
    """Stores a response that its owner begins to generate."""
    _insert(transaction, record, job, owner)
    return Lease(record.tenant, record.id, 1)


def _insert(transaction: Transaction, record: ResponseRecord, job: Job | None, owner: str) -> None:
    num_bytes = len(record.response) + len(record.history) + len(record.output)
    work = (None, None, None) if job is None else (job.model, job.request, job.prompt)
    transaction.execute(
        f"""
        INSERT INTO roost_responses ({_RECORD}, num_bytes, created,
            model, request, prompt, owner, fence, lease_until, num_stalls)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, {{now}}, ?, ?, ?, ?, 1, {{now}} + {LEASE_S}, 0)
        ON CONFLICT (tenant, id) DO NOTHING
        """,
        record.tenant,
        record.id,
        record.response,
        record.history,
        record.output,
        int(record.is_background),
        int(record.is_streamed),
        int(record.is_running),
        num_bytes,
        *work,
        owner,
    )


def append(transaction: Transaction, lease: Lease, entry: LogEntry) -> None:
    """Appends to the log and extends the lease. Repeating it changes nothing.

    Raises:
      FencedError: The lease's holder is no longer the owner.
    """
    changed = transaction.execute(
        f"UPDATE roost_responses SET num_stalls = 0, lease_until = {{now}} + {LEASE_S} WHERE {_HELD}", *_values(lease)
    )
    _check(changed.rowcount, lease)
    _append(transaction, lease, entry)


def end(transaction: Transaction, lease: Lease, entry: LogEntry, response: bytes, output: bytes) -> None:
    """Appends the last entry and stores the final response, which then has no owner.

    Raises:
      FencedError: The lease's holder is no longer the owner.
    """
    changed = transaction.execute(
        f"""
        UPDATE roost_responses SET response = ?, output = ?, is_running = 0, owner = NULL, model = NULL, request = NULL,
            prompt = NULL, checkpoint = NULL, checkpoint_tokens = NULL
        WHERE {_HELD}
        """,
        response,
        output,
        *_values(lease),
    )
    _check(changed.rowcount, lease)
    _append(transaction, lease, entry)
    transaction.execute(
        "DELETE FROM roost_events WHERE tenant = ? AND id = ? AND events = ?", lease.tenant, lease.id, b""
    )
    transaction.execute(
        """
        UPDATE roost_responses SET num_bytes = length(response) + length(history) + length(output) + (
            SELECT coalesce(sum(length(delta) + length(events)), 0) FROM roost_events
            WHERE roost_events.tenant = roost_responses.tenant AND roost_events.id = roost_responses.id)
        WHERE tenant = ? AND id = ?
        """,
        lease.tenant,
        lease.id,
    )


def _append(transaction: Transaction, lease: Lease, entry: LogEntry) -> None:
    transaction.execute(
        f"""
        INSERT INTO roost_events (tenant, id, {_ENTRY}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (tenant, id, number) DO NOTHING
        """,
        lease.tenant,
        lease.id,
        entry.number,
        entry.first_event,
        entry.num_events,
        entry.first_token,
        entry.num_tokens,
        entry.delta,
        entry.events,
    )


def set_checkpoint(transaction: Transaction, lease: Lease, checkpoint: Checkpoint) -> None:
    """Stores the reference to a saved state, in place of an earlier one.

    Raises:
      FencedError: The lease's holder is no longer the owner.
    """
    changed = transaction.execute(
        f"UPDATE roost_responses SET checkpoint = ?, checkpoint_tokens = ? WHERE {_HELD}",
        checkpoint.name,
        checkpoint.num_tokens,
        *_values(lease),
    )
    _check(changed.rowcount, lease)


def renew(transaction: Transaction, owner: str) -> list[Lease]:
    """Extends all leases of an owner, and returns them."""
    held = "owner = ? AND is_running = 1"
    transaction.execute(f"UPDATE roost_responses SET lease_until = {{now}} + {LEASE_S} WHERE {held}", owner)
    return [
        Lease(*row) for row in transaction.rows(f"SELECT tenant, id, fence FROM roost_responses WHERE {held}", owner)
    ]


def release(transaction: Transaction, leases: Iterable[Lease]) -> None:
    """Ends leases, so that others may adopt the responses at once."""
    for lease in leases:
        transaction.execute(f"UPDATE roost_responses SET owner = NULL, lease_until = 0 WHERE {_HELD}", *_values(lease))


def claim(transaction: Transaction, owner: str, model: str, limit: int) -> list[Claim]:
    """Makes a replica the owner of responses whose leases have ended, oldest first. Locked ones are left to others.

    Args:
      model: Identity of the model that the replica serves.
      limit: Maximum number of responses.
    """
    expired = "is_running = 1 AND model = ? AND lease_until < {now}"
    found = transaction.rows(
        f"SELECT tenant, id FROM roost_responses WHERE {expired} ORDER BY created LIMIT ? {{skip_locked}}", model, limit
    )
    return [_own(transaction, owner, tenant, response_id) for tenant, response_id in found]


def seize(transaction: Transaction, owner: str, tenant: str, response_id: str) -> Claim | None:
    """Makes a replica the owner of a running response in place of any other; None if no such response is running."""
    found = transaction.rows(
        "SELECT 1 FROM roost_responses WHERE tenant = ? AND id = ? AND is_running = 1 {lock}", tenant, response_id
    )
    return _own(transaction, owner, tenant, response_id) if found else None


def _own(transaction: Transaction, owner: str, tenant: str, response_id: str) -> Claim:
    transaction.execute(
        f"""
        UPDATE roost_responses SET owner = ?, fence = fence + 1, lease_until = {{now}} + {LEASE_S},
            num_stalls = num_stalls + 1
        WHERE tenant = ? AND id = ?
        """,
        owner,
        tenant,
        response_id,
    )
    columns = f"{_RECORD}, model, request, prompt, fence, num_stalls, checkpoint, checkpoint_tokens"
    query = f"SELECT {columns} FROM roost_responses WHERE tenant = ? AND id = ?"
    (row,) = transaction.rows(query, tenant, response_id)
    *record, model, request, prompt, fence, num_stalls, name, num_tokens = row
    return Claim(
        Lease(tenant, response_id, fence),
        _record(record),
        Job(model, request, prompt),
        num_stalls,
        None if name is None else Checkpoint(name, num_tokens),
        entries(transaction, tenant, response_id),
    )


def entries(transaction: Transaction, tenant: str, response_id: str) -> list[LogEntry]:
    """Returns a whole log, in order."""
    query = f"SELECT {_ENTRY} FROM roost_events WHERE tenant = ? AND id = ? ORDER BY number"
    return [_entry(row) for row in transaction.rows(query, tenant, response_id)]


def follow(
    transaction: Transaction, tenant: str, response_id: str, first_event: int
) -> tuple[Sequence[LogEntry], bool]:
    """Returns the next entries with events from a number on, and whether more may come."""
    query = "SELECT is_running FROM roost_responses WHERE tenant = ? AND id = ?"
    found = transaction.rows(query, tenant, response_id)  # before the log, which is complete if it says so
    query = f"""
        SELECT {_ENTRY} FROM roost_events WHERE tenant = ? AND id = ? AND first_event + num_events > ?
        ORDER BY number LIMIT ?
    """
    rows = transaction.rows(query, tenant, response_id, first_event, _MAX_ENTRIES)
    return [_entry(row) for row in rows], len(rows) == _MAX_ENTRIES or (bool(found) and bool(found[0][0]))


def delete(transaction: Transaction, tenant: str, response_id: str) -> bool:
    """Deletes a response and its log, and returns whether there was one. An owner's next write is refused."""
    for table in ("roost_events", "roost_responses"):
        deleted = transaction.execute(f"DELETE FROM {table} WHERE tenant = ? AND id = ?", tenant, response_id)
    return deleted.rowcount > 0


def expire(transaction: Transaction, max_age_s: float, max_responses: int, max_bytes: int, limit: int = 1000) -> int:
    """Deletes the oldest responses that have ended, and returns their number.

    Args:
      max_age_s: Age from which on responses are deleted.
      max_responses: Maximum number of each tenant.
      max_bytes: Maximum bytes of each tenant.
      limit: Maximum number of responses to delete at a time.
    """
    rows = transaction.rows(
        """
        SELECT tenant, id FROM (
            SELECT tenant, id, created,
                row_number() OVER (PARTITION BY tenant ORDER BY created DESC, id) AS place,
                sum(num_bytes) OVER (PARTITION BY tenant ORDER BY created DESC, id) AS total
            FROM roost_responses WHERE is_running = 0
        ) AS ended
        WHERE created < {now} - ? OR place > ? OR total > ? LIMIT ?
        """,
        max_age_s,
        max_responses,
        max_bytes,
        limit,
    )
    for tenant, response_id in rows:
        delete(transaction, tenant, response_id)
    return len(rows)


def count_running(transaction: Transaction) -> tuple[int, int]:
    """Returns the number of running responses of all replicas, and of those among them whose lease has ended."""
    ((running, expired),) = transaction.rows(
        """
        SELECT count(*), coalesce(sum(CASE WHEN lease_until < {now} THEN 1 ELSE 0 END), 0)
        FROM roost_responses WHERE is_running = 1
        """
    )
    return int(running), int(expired)


def _values(lease: Lease) -> tuple[Any, ...]:
    return lease.tenant, lease.id, lease.fence


def _check(num_rows: int, lease: Lease) -> None:
    if not num_rows:
        raise FencedError(f"{lease.id} was adopted, ended or deleted by another replica")


def _record(row: Sequence[Any]) -> ResponseRecord:
    tenant, response_id, response, history, output, *flags = row
    return ResponseRecord(tenant, response_id, bytes(response), bytes(history), bytes(output), *map(bool, flags))


def _entry(row: Sequence[Any]) -> LogEntry:
    number, first_event, num_events, first_token, num_tokens, delta, events = row
    return LogEntry(number, first_event, num_events, first_token, num_tokens, bytes(delta), bytes(events))
