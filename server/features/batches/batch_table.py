"""All statements on batches and on claims to their lines, as functions of a transaction.

Lines have places in the order in which they run. Those before the place `next_line` were claimed, and only claimed
lines that have not ended have rows of their own. `claim` gives a replica the next lines, and lines whose leases have
ended, under the next fencing number. `end` checks the number, removes the claim and stores the output line in one
transaction, so that each line of the input has one line of output. The end of a batch's last line makes its files
whole.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ...database.database import Transaction, placeholders
from . import file_table
from .batch_records import BatchRecord, BatchStatus, BatchTotals, LineClaim, LineLease, LineResult

LEASE_S: Final = 15.0
"""Seconds after the last renewal from which on others may claim a line."""

_MAX_BATCHES: Final = 4
"""Maximum number of batches from which a replica claims lines at a time."""

_BATCH: Final = (
    "tenant, id, status, model, url, input_file, output_file, error_file, time_window, metadata, created, expires, "
    "ended, num_lines, num_completed, num_failed"
)
_HELD: Final = "tenant = ? AND batch = ? AND number = ? AND fence = ?"


def insert(transaction: Transaction, batch: BatchRecord, window_s: float) -> BatchRecord | None:
    """Stores a new batch, whose lines may be claimed from now on, and returns it with its times.

    Args:
      window_s: Seconds until it expires.

    Returns:
      The batch; None if its input was deleted.
    """
    if not _locked_file(transaction, batch.tenant, batch.input_file):
        return None
    transaction.execute(
        f"""
        INSERT INTO roost_batches ({_BATCH}, next_line, claimed)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, {{now}}, {{now}} + ?, NULL, ?, 0, 0, 1, 0)
        ON CONFLICT (tenant, id) DO NOTHING
        """,
        batch.tenant,
        batch.id,
        batch.status.value,
        batch.model,
        batch.url,
        batch.input_file,
        batch.output_file,
        batch.error_file,
        batch.window,
        batch.metadata,
        window_s,
        batch.num_lines,
    )
    return find(transaction, batch.tenant, batch.id)


def find(transaction: Transaction, tenant: str, batch_id: str) -> BatchRecord | None:
    """Returns a batch; None if there is none."""
    rows = transaction.rows(f"SELECT {_BATCH} FROM roost_batches WHERE tenant = ? AND id = ?", tenant, batch_id)
    return _record(rows[0]) if rows else None


def every(transaction: Transaction, tenant: str) -> list[BatchRecord]:
    """Returns all batches of a tenant, oldest first."""
    query = f"SELECT {_BATCH} FROM roost_batches WHERE tenant = ? ORDER BY created, id"
    return [_record(row) for row in transaction.rows(query, tenant)]


def hide_file(transaction: Transaction, tenant: str, file_id: str) -> bool:
    """Hides a file unless a batch in progress reads it; returns whether it is hidden."""
    query = "SELECT 1 FROM roost_batches WHERE tenant = ? AND input_file = ? AND status = ?"
    if _locked_file(transaction, tenant, file_id) and transaction.rows(
        query, tenant, file_id, BatchStatus.IN_PROGRESS.value
    ):
        return False
    file_table.hide(transaction, tenant, file_id)
    return True


def _locked_file(transaction: Transaction, tenant: str, file_id: str) -> bool:
    """Locks a whole file, so that it is not deleted while a batch of it is created; returns whether there is one."""
    query = "SELECT 1 FROM roost_files WHERE tenant = ? AND id = ? AND is_whole = 1 {lock}"
    return bool(transaction.rows(query, tenant, file_id))


def cancel(transaction: Transaction, tenant: str, batch_id: str) -> BatchRecord | None:
    """Ends a batch that is in progress, and returns it; None if there is none. Writes for its lines are refused."""
    locked = transaction.rows("SELECT status FROM roost_batches WHERE tenant = ? AND id = ? {lock}", tenant, batch_id)
    if locked and locked[0][0] == BatchStatus.IN_PROGRESS:
        transaction.execute("DELETE FROM roost_batch_claims WHERE tenant = ? AND batch = ?", tenant, batch_id)
        _close(transaction, tenant, batch_id, BatchStatus.CANCELLED)
    return find(transaction, tenant, batch_id)


def claim(transaction: Transaction, owner: str, model: str | None, limit: int) -> list[LineClaim]:
    """Makes a replica the owner of lines: of those whose leases have ended, then of the next lines of batches.

    Batches take turns. Rows that another replica has locked are left to it.

    Args:
      owner: Name of the replica.
      model: Identity of the model that it serves; None claims lines of all batches that have expired, whatever their
        model, since they do not run any more.
      limit: Maximum number of lines.
    """
    leases = _lost_leases(transaction, owner, model, limit)
    leases += _new_leases(transaction, owner, model, limit - len(leases))
    return _claims(transaction, leases)


def _lost_leases(transaction: Transaction, owner: str, model: str | None, limit: int) -> list[LineLease]:
    is_expired = """
        EXISTS (SELECT 1 FROM roost_batches WHERE roost_batches.tenant = roost_batch_claims.tenant
            AND id = roost_batch_claims.batch AND expires < {now})
    """
    rows = transaction.rows(
        f"""
        SELECT tenant, batch, number, fence FROM roost_batch_claims
        WHERE lease_until < {{now}} AND {is_expired if model is None else "model = ?"}
        ORDER BY lease_until LIMIT ? {{skip_locked}}
        """,
        *([] if model is None else [model]),
        limit,
    )
    for row in rows:
        transaction.execute(
            f"""
            UPDATE roost_batch_claims SET owner = ?, fence = fence + 1, num_claims = num_claims + 1,
                lease_until = {{now}} + {LEASE_S}
            WHERE {_HELD}
            """,
            owner,
            *row,
        )
    return [LineLease(tenant, batch, number, fence + 1) for tenant, batch, number, fence in rows]


def _new_leases(transaction: Transaction, owner: str, model: str | None, limit: int) -> list[LineLease]:
    rows = transaction.rows(
        f"""
        SELECT tenant, id, model, input_file, next_line, num_lines FROM roost_batches
        WHERE status = 'in_progress' AND next_line <= num_lines
            AND {"expires < {now}" if model is None else "model = ?"}
        ORDER BY claimed, created, tenant, id LIMIT ? {{skip_locked}}
        """,
        *([] if model is None else [model]),
        min(limit, _MAX_BATCHES),
    )
    leases: list[LineLease] = []
    for turn, (tenant, batch, batch_model, input_file, first, last) in enumerate(rows):
        share = -(-(limit - len(leases)) // (len(rows) - turn))
        end = min(first + share, last + 1)
        transaction.execute(
            "UPDATE roost_batches SET next_line = ?, claimed = {now} + ? WHERE tenant = ? AND id = ?",
            end,
            1e-6 * (turn or len(rows)),  # the first of them, which got the most, is the last of them next time
            tenant,
            batch,
        )
        numbers = file_table.numbers_at(transaction, tenant, input_file, first, end)
        transaction.execute(
            f"""
            INSERT INTO roost_batch_claims (tenant, batch, number, model, owner, fence, num_claims, lease_until)
            VALUES {", ".join([f"(?, ?, ?, ?, ?, 1, 1, {{now}} + {LEASE_S})"] * len(numbers))}
            """,
            *(value for number in numbers for value in (tenant, batch, number, batch_model, owner)),
        )
        leases += [LineLease(tenant, batch, number, 1) for number in numbers]
    return leases


def _claims(transaction: Transaction, leases: Sequence[LineLease]) -> list[LineClaim]:
    """Returns the lines of some leases, but for those whose batch or file was deleted."""
    if not leases:
        return []
    rows = transaction.rows(
        f"""
        SELECT roost_batch_claims.tenant, batch, roost_batch_claims.number, line, roost_batches.model, num_claims,
            expires < {{now}} FROM roost_batch_claims
        JOIN roost_batches ON roost_batches.tenant = roost_batch_claims.tenant AND id = batch
        JOIN roost_file_lines ON roost_file_lines.tenant = roost_batch_claims.tenant AND file = input_file
            AND roost_file_lines.number = roost_batch_claims.number
        WHERE (roost_batch_claims.tenant, batch, roost_batch_claims.number)
            IN (VALUES {placeholders(len(leases), 3)})
        """,
        *(value for lease in leases for value in (lease.tenant, lease.batch, lease.number)),
    )
    found = {
        (tenant, batch, number): (bytes(line), model, num_claims, bool(is_expired))
        for tenant, batch, number, line, model, num_claims, is_expired in rows
    }
    known = ((lease, found.get((lease.tenant, lease.batch, lease.number))) for lease in leases)
    return [LineClaim(lease, *fields) for lease, fields in known if fields is not None]


def renew(transaction: Transaction, owner: str) -> list[LineLease]:
    """Extends all leases of a replica, and returns them."""
    query = f"""
        UPDATE roost_batch_claims SET lease_until = {{now}} + {LEASE_S} WHERE owner = ?
        RETURNING tenant, batch, number, fence
    """
    return [LineLease(*row) for row in transaction.rows(query, owner)]


def release(transaction: Transaction, leases: Iterable[LineLease]) -> None:
    """Ends leases, so that others may claim the lines at once. The claims do not count as attempts."""
    for lease in leases:
        transaction.execute(
            f"""
            UPDATE roost_batch_claims SET owner = NULL, lease_until = 0, num_claims = num_claims - 1 WHERE {_HELD}
            """,
            *_values(lease),
        )


def end(transaction: Transaction, results: Mapping[LineLease, LineResult]) -> set[LineLease]:
    """Stores what lines have ended with. A batch ends with its last line.

    All lines take few statements together: after each statement its thread has to wait for the interpreter, which the
    engine's thread uses most of the time.

    Args:
      results: At least one result.

    Returns:
      The leases whose holders were still the owners. Nothing is stored for the others, whose lines other replicas have
      claimed, or whose batches have ended.
    """
    names = sorted({(lease.tenant, lease.batch) for lease in results})
    # Batches are locked in one order, and before claims as in `cancel`, so that replicas never block each other.
    locked = transaction.rows(
        f"""
        SELECT tenant, id, output_file, error_file FROM roost_batches
        WHERE (tenant, id) IN (VALUES {placeholders(len(names), 2)}) ORDER BY tenant, id {{lock}}
        """,
        *(value for name in names for value in name),
    )
    held = _delete_claims(transaction, list(results))
    for tenant, batch, output_file, error_file in locked:
        own = {lease.number: results[lease] for lease in held if (lease.tenant, lease.batch) == (tenant, batch)}
        if own:
            files = {False: output_file, True: error_file}
            lines = [(files[result.is_failed], number, result.line) for number, result in own.items()]
            file_table.put_lines(transaction, tenant, lines)
            _count(transaction, tenant, batch, list(own.values()))
    return held


def _delete_claims(transaction: Transaction, leases: Sequence[LineLease]) -> set[LineLease]:
    """Deletes claims, and returns the leases that were still held."""
    rows = transaction.rows(
        f"""
        DELETE FROM roost_batch_claims WHERE (tenant, batch, number, fence) IN (VALUES {placeholders(len(leases), 4)})
        RETURNING tenant, batch, number, fence
        """,
        *(value for lease in leases for value in _values(lease)),
    )
    return {LineLease(*row) for row in rows}


def _count(transaction: Transaction, tenant: str, batch_id: str, results: Sequence[LineResult]) -> None:
    """Counts results of a batch, and ends the batch if they are the last."""
    sizes = {failed: [len(each.line) for each in results if each.is_failed is failed] for failed in (False, True)}
    ((is_over, status),) = transaction.rows(
        """
        UPDATE roost_batches SET num_completed = num_completed + ?, output_bytes = output_bytes + ?,
            num_failed = num_failed + ?, error_bytes = error_bytes + ?
        WHERE tenant = ? AND id = ?
        RETURNING num_completed + num_failed = num_lines, CASE WHEN expires < {now} THEN 'expired' ELSE 'completed' END
        """,
        *(value for each in sizes.values() for value in (len(each), sum(each))),
        tenant,
        batch_id,
    )
    if is_over:
        _close(transaction, tenant, batch_id, BatchStatus(status))


def _close(transaction: Transaction, tenant: str, batch_id: str, status: BatchStatus) -> None:
    """Ends a batch, and makes the files whole that have a line."""
    transaction.execute(
        "UPDATE roost_batches SET status = ?, ended = {now} WHERE tenant = ? AND id = ?", status.value, tenant, batch_id
    )
    for kind, count in (("output", "num_completed"), ("error", "num_failed")):
        query = f"SELECT {kind}_file, {count}, {kind}_bytes FROM roost_batches WHERE tenant = ? AND id = ?"
        ((file_id, num_lines, num_bytes),) = transaction.rows(query, tenant, batch_id)
        if num_lines:
            file_table.begin(transaction, tenant, file_id, "batch_output", f"{batch_id}_{kind}.jsonl")
            file_table.finish(transaction, tenant, file_id, num_lines, num_bytes)


def expire(transaction: Transaction, max_age_s: float) -> None:
    """Deletes batches of this age that have ended."""
    transaction.execute("DELETE FROM roost_batches WHERE status <> 'in_progress' AND created < {now} - ?", max_age_s)


def totals(transaction: Transaction) -> BatchTotals:
    """Returns the counts for metrics."""
    statuses = transaction.rows("SELECT status, count(*) FROM roost_batches GROUP BY status")
    ((lines, oldest),) = transaction.rows(
        """
        SELECT coalesce(sum(num_lines - num_completed - num_failed), 0), coalesce(max({now} - created), 0)
        FROM roost_batches WHERE status = 'in_progress'
        """
    )
    ((running,),) = transaction.rows("SELECT count(*) FROM roost_batch_claims WHERE lease_until >= {now}")
    return BatchTotals({status: int(count) for status, count in statuses}, int(lines), int(running), float(oldest))


def _values(lease: LineLease) -> tuple[Any, ...]:
    return lease.tenant, lease.batch, lease.number, lease.fence


def _record(row: Sequence[Any]) -> BatchRecord:
    tenant, batch_id, status, model, url, input_file, output_file, error_file, window, metadata, *rest = row
    ids = (input_file, output_file, error_file)
    return BatchRecord(tenant, batch_id, BatchStatus(status), model, url, *ids, window, bytes(metadata), *rest)
