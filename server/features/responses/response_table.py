"""Statements on stored responses, as functions of a transaction. `claim_table` has the statements of adoptions."""

from collections.abc import Collection, Iterable, Sequence
from itertools import batched
from typing import Any, Final
from uuid import uuid4

from ...database.database import Transaction, placeholders
from ...database.errors import FencedError
from ...storage.objects import ObjectTable
from . import conversation_table, event_table
from .conversation_table import Item, Turn, pack_items, unpack_items
from .records import CheckpointReference, Job, Lease, LogEntry, ResponseRecord

LEASE_S: Final = 15.0
"""Seconds after an owner's last write at which its lease ends, so that others may adopt its response."""

_MAX_NAMED: Final = 250
"""Maximum number of leases that a statement extends by name."""

_PROBE_BYTES: Final = 4096
"""Bytes of a response that is stored as a probe: about those of a short response."""

RESPONSES: Final = ObjectTable(
    "roost_responses",
    ResponseRecord,
    bounded="is_running = 0",
    extra={
        "created": float,
        "num_bytes": int,
        "log_bytes": int,
        "model": str | None,
        "request": bytes | None,
        "prompt": bytes | None,
        "conversation": str | None,
        "input_items": bytes | None,
        "owner": str | None,
        "fence": int,
        "lease_until": float,
        "num_deaths": int,
        "num_lone_deaths": int,
        "is_alone": bool,
        "engine": str | None,
        "exact_fence": int,
        "checkpoint": str | None,
        "checkpoint_tokens": int | None,
    },
    indexes={
        "leases": "(lease_until) WHERE is_running = 1",
        "running": "(tenant, lease_until, num_bytes, log_bytes) WHERE is_running = 1",
        "owners": "(owner) WHERE is_running = 1",
        "ended": "(tenant, created, num_bytes) WHERE is_running = 0",
        "old": "(created) WHERE is_running = 0",
    },
)

HELD: Final = "tenant = ? AND id = ? AND fence = ? AND is_running = 1"


def put(transaction: Transaction, record: ResponseRecord) -> bytes:
    """Stores a response that has ended and was not generated in the background, unless its id is stored already.

    Returns:
      JSON of the response that is stored.
    """
    if _insert(transaction, record, None, ""):
        return record.response
    query = "SELECT response FROM roost_responses WHERE tenant = ? AND id = ?"
    ((response,),) = transaction.rows(query, record.tenant, record.id)
    return bytes(response)


def insert(
    transaction: Transaction, record: ResponseRecord, job: Job, owner: str, entry: LogEntry | None = None
) -> Lease:
    """Stores a response that its owner begins to generate.

    Args:
      entry: First entry of its log, if its owner has already generated a part of it; None otherwise.
    """
    _insert(transaction, record, job, owner, 0 if entry is None else entry.num_bytes)
    lease = Lease(record.tenant, record.id, 1)
    if entry is not None:
        event_table.append(transaction, [(lease, entry)])
    return lease


def probe(transaction: Transaction) -> None:
    """Stores a response with a log, and deletes both, to find out whether the tables can be written."""
    record = ResponseRecord("", f"probe_{uuid4().hex}", bytes(_PROBE_BYTES), b"", b"")
    insert(transaction, record, Job("", b"", b""), "", LogEntry(0, 0, 0, 0, 0))
    delete(transaction, record.tenant, record.id)


def _insert(transaction: Transaction, record: ResponseRecord, job: Job | None, owner: str, log_bytes: int = 0) -> int:
    """Stores a response, and returns the number of new rows: 0 if its id is stored already."""
    extra = {"num_bytes": record.num_bytes, "log_bytes": log_bytes, "owner": owner, "fence": 1}
    if job is not None:
        items = None if job.turn is None else pack_items(job.turn.items)
        extra |= {
            "num_bytes": record.num_bytes + job.num_bytes + len(items or b""),
            "model": job.model,
            "request": job.request,
            "prompt": job.prompt,
            "engine": job.engine,
            "exact_fence": int(job.engine is not None),
            "conversation": None if job.turn is None else job.turn.conversation,
            "input_items": items,
        }
    return RESPONSES.insert(transaction, record, extra, created="{now}", lease_until=f"{{now}} + {LEASE_S}")


def append_all(transaction: Transaction, appends: Sequence[tuple[Lease, LogEntry, int]]) -> set[Lease]:
    """Appends to logs and extends their leases, in two statements. Repeating it changes nothing.

    Args:
      appends: Lease, entry, and bytes of the log with that entry, for each log.

    Returns:
      The leases whose holders are still the owners. Nothing is appended to the other logs.
    """
    held = _extend(transaction, [(lease, log_bytes) for lease, _, log_bytes in appends])
    event_table.append(transaction, [(lease, entry) for lease, entry, _ in appends if lease in held])
    return held


def _extend(transaction: Transaction, logs: Sequence[tuple[Lease, int]]) -> set[Lease]:
    """Extends leases, stores the bytes of their logs, and returns the leases that are still held."""
    rows = transaction.rows(
        f"""
        WITH appended (holder, name, number, bytes) AS (VALUES {placeholders(len(logs), 4)})
        UPDATE roost_responses SET lease_until = {{now}} + {LEASE_S}, log_bytes = bytes FROM appended
        WHERE is_running = 1 AND tenant = holder AND id = name AND fence = number
        RETURNING tenant, id, fence
        """,
        *(value for lease, log_bytes in logs for value in (*values_of(lease), log_bytes)),
    )
    return {Lease(*row) for row in rows}


def end(
    transaction: Transaction,
    lease: Lease,
    entry: LogEntry,
    response: bytes,
    output: bytes,
    log_bytes: int,
    items: Sequence[Item] = (),
) -> None:
    """Appends the last entry and stores the final response, which then has no owner. A stream's log is kept.

    Args:
      log_bytes: Bytes of the log with this entry.
      items: Items that the response's output adds to its conversation; none if it has failed or has no conversation.

    Raises:
      FencedError: The lease's holder is no longer the owner.
    """
    ended = transaction.rows(
        f"""
        UPDATE roost_responses SET response = ?, output = ?, is_running = 0, owner = NULL, model = NULL, request = NULL,
            prompt = NULL, checkpoint = NULL, checkpoint_tokens = NULL,
            num_bytes = length(history) + ? + CASE WHEN is_streamed = 1 THEN ? ELSE 0 END
        WHERE {HELD}
        RETURNING is_streamed, conversation, input_items
        """,
        response,
        output,
        len(response) + len(output),
        log_bytes,
        *values_of(lease),
    )
    check(len(ended), lease)
    ((is_streamed, conversation, input_items),) = ended
    if is_streamed:
        event_table.append(transaction, [(lease, entry)])
    else:
        event_table.delete(transaction, lease.tenant, lease.id)
    if conversation is not None:
        turn = Turn(conversation, lease.id, unpack_items(bytes(input_items))).ended(items)
        conversation_table.end(transaction, lease.tenant, turn)
        drop_items = "UPDATE roost_responses SET input_items = NULL WHERE tenant = ? AND id = ?"
        transaction.execute(drop_items, lease.tenant, lease.id)


def set_checkpoint(transaction: Transaction, lease: Lease, checkpoint: CheckpointReference) -> None:
    """Stores the reference to a saved state, and replaces an earlier reference.

    Raises:
      FencedError: The lease's holder is no longer the owner.
    """
    changed = transaction.execute(
        f"UPDATE roost_responses SET checkpoint = ?, checkpoint_tokens = ? WHERE {HELD}",
        checkpoint.name,
        checkpoint.num_tokens,
        *values_of(lease),
    )
    check(changed.rowcount, lease)


def checkpoint_names(transaction: Transaction) -> list[str]:
    """Returns the names of all state files that running responses refer to."""
    rows = transaction.rows("SELECT checkpoint FROM roost_responses WHERE is_running = 1 AND checkpoint IS NOT NULL")
    return [name for (name,) in rows]


def renew(transaction: Transaction, owner: str, leases: Collection[Lease]) -> list[Lease]:
    """Extends the given leases that an owner still has, and returns all leases that it has in the database.

    Rows that another transaction has locked are skipped: that transaction's append extends the lease, too.
    """
    where = "owner = ? AND is_running = 1"
    rows = transaction.rows(f"SELECT tenant, id, fence FROM roost_responses WHERE {where}", owner)
    held = [Lease(*row) for row in rows]
    extend = f"""
        UPDATE roost_responses SET lease_until = {{now}} + {LEASE_S} WHERE (tenant, id) IN (
            SELECT tenant, id FROM roost_responses WHERE {where} {{skip_locked}})
    """
    kept = set(leases)
    wanted = [lease for lease in held if lease in kept]
    if len(wanted) == len(held):
        transaction.execute(extend, owner)
        return held
    for some in batched(wanted, _MAX_NAMED):  # takes PostgreSQL 20 times as long
        names = placeholders(len(some), 3)
        values = (value for lease in some for value in values_of(lease))
        transaction.execute(f"{extend} AND (tenant, id, fence) IN (VALUES {names})", owner, *values)
    return held


def release(transaction: Transaction, leases: Iterable[Lease], *, is_death: bool = False) -> None:
    """Ends leases, so that others may adopt the responses immediately. Repeating it changes nothing.

    Args:
      is_death: Whether this counts as a death of the owner.
    """
    deaths = f"CASE WHEN owner IS NULL THEN 0 ELSE {int(is_death)} END"
    for lease in leases:
        transaction.execute(
            f"""
            UPDATE roost_responses SET owner = NULL, lease_until = {{now}}, num_deaths = num_deaths + {deaths},
                num_lone_deaths = num_lone_deaths + is_alone * {deaths}
            WHERE {HELD}
            """,
            *values_of(lease),
        )


def delete(transaction: Transaction, tenant: str, response_id: str) -> bool:
    """Deletes a response and its log, and returns whether it existed. An owner's next write is refused."""
    event_table.delete(transaction, tenant, response_id)
    deleted = transaction.execute("DELETE FROM roost_responses WHERE tenant = ? AND id = ?", tenant, response_id)
    return deleted.rowcount > 0


def running_of(transaction: Transaction, tenant: str, limit: int) -> tuple[int, int]:
    """Returns the number of a tenant's running responses, and the bytes of them and their logs.

    Args:
      limit: Maximum number of responses to count.
    """
    query = """
        SELECT count(*), coalesce(sum(num_bytes + log_bytes), 0) FROM (
            SELECT num_bytes, log_bytes FROM roost_responses WHERE is_running = 1 AND tenant = ? LIMIT ?
        ) AS running
    """
    ((count, num_bytes),) = transaction.rows(query, tenant, limit)
    return int(count), int(num_bytes)


def count_running(transaction: Transaction, patience_s: float) -> tuple[int, int, int]:
    """Returns the numbers of running responses of all replicas: all, those without an owner, and those long without
    one.

    Args:
      patience_s: Seconds without an owner after which a response counts as long without one.
    """
    running = "SELECT count(*) FROM roost_responses WHERE is_running = 1"
    (counts,) = transaction.rows(
        f"""
        SELECT ({running}), ({running} AND lease_until <= {{now}}),
            ({running} AND lease_until < {{now}} - ?)
        """,
        patience_s,
    )
    num_running, orphaned, abandoned = map(int, counts)
    return num_running, orphaned, abandoned


def values_of(lease: Lease) -> tuple[Any, ...]:
    """Returns the values of `HELD`."""
    return lease.tenant, lease.id, lease.fence


def refused(lease: Lease) -> FencedError:
    """Returns the error for a write of a former owner."""
    return FencedError(f"{lease.id} was adopted, ended or deleted by another replica")


def check(num_rows: int, lease: Lease) -> None:
    """Raises FencedError if a write to a response that the lease's holder must own has changed no row."""
    if not num_rows:
        raise refused(lease)
