"""All statements on stored responses and their logs, as functions of a transaction.

The protocol of leases: `insert` makes the writer the owner under fencing number 1. Each write of an owner checks its
number and extends its lease. When a lease has ended, a replica that serves the same model may `claim` the response,
which gives it the next number. `seize` does so at once, to cancel. A response that has ended has no owner.

The column `engine` names the engine whose tokens are in the log, and `exact_fence` is the number of the last owner that
continued them exactly. An owner that reads them as a prompt leaves both as they are, as do replicas of older versions,
so the log is exact for as long as `exact_fence` equals `fence`.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import batched
from typing import Any, Final

from ...database.database import Transaction, placeholders
from ...database.errors import FencedError
from .records import Checkpoint, Claim, Job, Lease, LogEntry, ResponseRecord

LEASE_S: Final = 15.0
"""Seconds after an owner's last write from which on others may adopt its response."""

_MAX_ENTRIES: Final = 256
"""Maximum number of log entries that are read at a time."""

_MAX_NAMED: Final = 250
"""Maximum number of leases that a statement extends by their names."""

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


def insert(
    transaction: Transaction, record: ResponseRecord, job: Job, owner: str, entry: LogEntry | None = None
) -> Lease:
    """Stores a response that its owner begins to generate.

    Args:
      entry: First entry of its log, if its owner has already generated a part of it; None otherwise.
    """
    _insert(transaction, record, job, owner)
    lease = Lease(record.tenant, record.id, 1)
    if entry is not None:
        _append_entries(transaction, [(lease, entry)])
    return lease


def _insert(transaction: Transaction, record: ResponseRecord, job: Job | None, owner: str) -> None:
    num_bytes = len(record.response) + len(record.history) + len(record.output)
    engine = None if job is None else job.engine
    work = (None, None, None) if job is None else (job.model, job.request, job.prompt)
    transaction.execute(
        f"""
        INSERT INTO roost_responses ({_RECORD}, num_bytes, created,
            model, request, prompt, owner, engine, exact_fence, fence, lease_until, num_stalls)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, {{now}}, ?, ?, ?, ?, ?, ?, 1, {{now}} + {LEASE_S}, 0)
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
        engine,
        None if engine is None else 1,
    )


def append_all(transaction: Transaction, appends: Sequence[tuple[Lease, LogEntry]]) -> set[Lease]:
    """Appends to logs and extends their leases, in two statements. Repeating it changes nothing.

    Returns:
      The leases whose holders are still the owners. Nothing is appended to the other logs.
    """
    held = _extend(transaction, [lease for lease, _ in appends])
    _append_entries(transaction, [(lease, entry) for lease, entry in appends if lease in held])
    return held


def _extend(transaction: Transaction, leases: Sequence[Lease]) -> set[Lease]:
    """Extends leases after progress, and returns those that are still held."""
    rows = transaction.rows(
        f"""
        UPDATE roost_responses SET num_stalls = 0, lease_until = {{now}} + {LEASE_S}
        WHERE is_running = 1 AND (tenant, id, fence) IN (VALUES {placeholders(len(leases), 3)})
        RETURNING tenant, id, fence
        """,
        *(value for lease in leases for value in _values(lease)),
    )
    return {Lease(*row) for row in rows}


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
    _append_entries(transaction, [(lease, entry)])
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


def _append_entries(transaction: Transaction, appends: Sequence[tuple[Lease, LogEntry]]) -> None:
    if not appends:
        return
    transaction.execute(
        f"""
        INSERT INTO roost_events (tenant, id, {_ENTRY}) VALUES {placeholders(len(appends), 9)}
        ON CONFLICT (tenant, id, number) DO NOTHING
        """,
        *(value for lease, entry in appends for value in (lease.tenant, lease.id, *_entry_values(entry))),
    )


def _entry_values(entry: LogEntry) -> tuple[Any, ...]:
    counts = entry.number, entry.first_event, entry.num_events, entry.first_token, entry.num_tokens
    return (*counts, entry.delta, entry.events)


def set_checkpoint(transaction: Transaction, lease: Lease, checkpoint: Checkpoint) -> None:
    """Stores the reference to a saved state, in place of an earlier one. It counts as progress, as a token does.

    Raises:
      FencedError: The lease's holder is no longer the owner.
    """
    changed = transaction.execute(
        f"UPDATE roost_responses SET checkpoint = ?, checkpoint_tokens = ?, num_stalls = 0 WHERE {_HELD}",
        checkpoint.name,
        checkpoint.num_tokens,
        *_values(lease),
    )
    _check(changed.rowcount, lease)


def checkpoint_names(transaction: Transaction) -> list[str]:
    """Returns the names of all state files that running responses refer to."""
    rows = transaction.rows("SELECT checkpoint FROM roost_responses WHERE is_running = 1 AND checkpoint IS NOT NULL")
    return [name for (name,) in rows]


def renew(transaction: Transaction, owner: str, leases: Collection[Lease]) -> list[Lease]:
    """Extends those of an owner's leases that it still wants, and returns all that the database has of it."""
    where = "owner = ? AND is_running = 1"
    rows = transaction.rows(f"SELECT tenant, id, fence FROM roost_responses WHERE {where}", owner)
    held = [Lease(*row) for row in rows]
    extend = f"UPDATE roost_responses SET lease_until = {{now}} + {LEASE_S} WHERE {where}"
    kept = set(leases)
    wanted = [lease for lease in held if lease in kept]
    if len(wanted) == len(held):
        transaction.execute(extend, owner)
        return held
    for some in batched(wanted, _MAX_NAMED):  # which takes PostgreSQL 20 times as long
        names = placeholders(len(some), 3)
        values = (value for lease in some for value in _values(lease))
        transaction.execute(f"{extend} AND (tenant, id, fence) IN (VALUES {names})", owner, *values)
    return held


def release(transaction: Transaction, leases: Iterable[Lease]) -> None:
    """Ends leases, so that others may adopt the responses at once."""
    for lease in leases:
        transaction.execute(
            f"UPDATE roost_responses SET owner = NULL, lease_until = {{now}} WHERE {_HELD}", *_values(lease)
        )


def claim(
    transaction: Transaction, owner: str, model: str, limit: int, engine: str | None = None, after_s: float = 0.0
) -> list[Claim]:
    """Makes a replica the owner of responses whose leases have ended, oldest first. Locked ones are left to others.

    Args:
      model: Identity of the model that the replica serves.
      limit: Maximum number of responses.
      engine: Identity of the replica's engine.
      after_s: Seconds for which a response that another engine can continue exactly is left to one.
    """
    found = transaction.rows(
        """
        SELECT tenant, id FROM roost_responses
        WHERE is_running = 1 AND model = ? AND (owner IS NULL OR lease_until < {now}) AND (
            lease_until < {now} - ? OR engine = ? OR coalesce(exact_fence, 0) <> fence OR NOT EXISTS (
                SELECT 1 FROM roost_events
                WHERE roost_events.tenant = roost_responses.tenant AND roost_events.id = roost_responses.id
                    AND num_tokens > 0))
        ORDER BY created LIMIT ? {skip_locked}
        """,
        model,
        after_s,
        engine,
        limit,
    )
    if found:  # fails where logs cannot be written, so that this is no adoption without progress
        transaction.execute("INSERT INTO roost_events SELECT * FROM roost_events WHERE 1 = 0")
    return [_own(transaction, owner, tenant, response_id, engine) for tenant, response_id in found]


def seize(transaction: Transaction, owner: str, tenant: str, response_id: str) -> Claim | None:
    """Makes a replica the owner of a running response in place of any other; None if no such response is running."""
    found = transaction.rows(
        "SELECT 1 FROM roost_responses WHERE tenant = ? AND id = ? AND is_running = 1 {lock}", tenant, response_id
    )
    return _own(transaction, owner, tenant, response_id, None) if found else None


def _own(transaction: Transaction, owner: str, tenant: str, response_id: str, engine: str | None) -> Claim:
    """Makes a replica the owner of a response, whose row the transaction has locked."""
    columns = "model, request, prompt, engine, exact_fence, fence, num_stalls, checkpoint, checkpoint_tokens"
    query = f"SELECT {columns}, {_RECORD} FROM roost_responses WHERE tenant = ? AND id = ?"
    ((model, request, prompt, earlier, exact_fence, fence, num_stalls, name, num_tokens, *record),) = transaction.rows(
        query, tenant, response_id
    )
    log = entries(transaction, tenant, response_id)
    is_unread = not any(entry.num_tokens for entry in log)
    is_exact = engine is not None and (is_unread or (engine == earlier and exact_fence == fence))
    transaction.execute(
        f"""
        UPDATE roost_responses SET owner = ?, fence = ?, lease_until = {{now}} + {LEASE_S}, num_stalls = ?, engine = ?,
            exact_fence = ?
        WHERE tenant = ? AND id = ?
        """,
        owner,
        fence + 1,
        num_stalls + 1,
        engine if is_exact else earlier,
        fence + 1 if is_exact else exact_fence,
        tenant,
        response_id,
    )
    return Claim(
        Lease(tenant, response_id, fence + 1),
        _record(record),
        Job(model, request, prompt, engine if is_exact else earlier),
        num_stalls + 1,
        is_exact,
        None if name is None else Checkpoint(name, num_tokens),
        log,
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
    """Deletes the oldest responses that have ended, and those long without an owner; returns their number.

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
    query = "SELECT tenant, id FROM roost_responses WHERE is_running = 1 AND lease_until < {now} - ? LIMIT ?"
    rows += transaction.rows(query, max_age_s, limit)
    for tenant, response_id in rows:
        delete(transaction, tenant, response_id)
    return len(rows)


def count_running(transaction: Transaction, patience_s: float) -> tuple[int, int, int]:
    """Returns the number of running responses of all replicas, of those without an owner, and of those long without.

    Args:
      patience_s: Seconds without an owner from which on a response counts among the last.
    """
    (counts,) = transaction.rows(
        """
        SELECT count(*),
            coalesce(sum(CASE WHEN owner IS NULL OR lease_until < {now} THEN 1 ELSE 0 END), 0),
            coalesce(sum(CASE WHEN lease_until < {now} - ? THEN 1 ELSE 0 END), 0)
        FROM roost_responses WHERE is_running = 1
        """,
        patience_s,
    )
    running, orphaned, abandoned = map(int, counts)
    return running, orphaned, abandoned


def _values(lease: Lease) -> tuple[Any, ...]:
    return lease.tenant, lease.id, lease.fence


def refused(lease: Lease) -> FencedError:
    """Returns the error for a write of a former owner."""
    return FencedError(f"{lease.id} was adopted, ended or deleted by another replica")


def _check(num_rows: int, lease: Lease) -> None:
    if not num_rows:
        raise refused(lease)


def _record(row: Sequence[Any]) -> ResponseRecord:
    tenant, response_id, response, history, output, *flags = row
    return ResponseRecord(tenant, response_id, bytes(response), bytes(history), bytes(output), *map(bool, flags))


def _entry(row: Sequence[Any]) -> LogEntry:
    number, first_event, num_events, first_token, num_tokens, delta, events = row
    return LogEntry(number, first_event, num_events, first_token, num_tokens, bytes(delta), bytes(events))
