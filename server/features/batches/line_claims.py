"""Claims to lines, as functions of a transaction.

Tenants take turns, then the batches of a tenant, then lines. `claim` gives a replica the next lines, and due lines with
the next fencing number; see `line_leases`.
"""

from collections.abc import Sequence
from typing import Any, Final

from ...database.database import Transaction, placeholders
from . import file_table, quotas
from .batch_records import LineClaim, LineLease
from .line_leases import LEASE_S, due_query, suspects_query, take_due
from .tenant_turns import Places, TenantTurn, end_turns, open_turns

_MAX_BATCHES: Final = 4
"""Maximum number of batches of a tenant from which a replica claims lines at a time."""

_NEXT: Final = "tenant, id, model, input_file, next_line, num_lines"


def claim(transaction: Transaction, owner: str, model: str, places: Places, max_bytes: int) -> list[LineClaim]:
    """Makes a replica the owner of one line that must run alone, or otherwise of several lines.

    Each tenant gets an equal share of the places. Rows that another replica has locked are skipped. A tenant without
    room for output gets no places.

    Args:
      owner: Name of the replica.
      model: Identity of the model that the replica serves.
      max_bytes: Maximum bytes of a tenant's files.
    """
    if places.takes_suspect and (found := _suspect(transaction, model, max_bytes)):
        leases = take_due(transaction, owner, found)
        end_turns(transaction, [lease.tenant for lease in leases])
        return _claims(transaction, leases)
    passed, turns = open_turns(transaction, model, places, max_bytes)
    leases = _share_out(transaction, owner, model, turns, places)
    end_turns(transaction, passed)
    return _claims(transaction, leases)


def claim_expired(transaction: Transaction, owner: str, limit: int) -> list[LineClaim]:
    """Makes a replica the owner of lines of expired batches of any model. Such lines do not run any more.

    Args:
      owner: Name of the replica.
      limit: Maximum number of lines.
    """
    due = transaction.rows(
        """
        SELECT tenant, batch, number, fence FROM roost_batch_claims
        WHERE lease_until < {now} AND (tenant, batch) IN (
            SELECT tenant, id FROM roost_batches WHERE status = 'in_progress' AND expires < {now})
        ORDER BY lease_until LIMIT ? {skip_locked}
        """,
        limit,
    )
    leases = take_due(transaction, owner, due)
    batches = transaction.rows(
        f"""
        SELECT {_NEXT} FROM roost_batches
        WHERE status = 'in_progress' AND next_line <= num_lines AND expires < {{now}}
        ORDER BY expires, tenant, id LIMIT ? {{skip_locked}}
        """,
        min(limit - len(leases), _MAX_BATCHES),
    )
    leases += _take_next(transaction, owner, batches, limit - len(leases))
    return _claims(transaction, leases)


def _suspect(transaction: Transaction, model: str, max_bytes: int) -> list[tuple[Any, ...]]:
    """Returns the due line that runs alone next, if any, as a row with its lease."""
    rows = transaction.rows(suspects_query(), model)
    if not rows:
        return []
    sizes = quotas.sizes(transaction, list({row[0] for row in rows}))
    return [row for row in rows if sizes[row[0]] < max_bytes][:1]


def _share_out(
    transaction: Transaction, owner: str, model: str, turns: Sequence[TenantTurn], places: Places
) -> list[LineLease]:
    """Claims an equal number of lines for each tenant; places that one tenant does not use are given to the others."""
    leases: list[LineLease] = []
    room = {turn: places.of(turn.tenant) for turn in turns}
    while room and len(leases) < places.num_free:
        for place, turn in enumerate(left := list(room)):
            share = min(-(-(places.num_free - len(leases)) // (len(left) - place)), room[turn])
            taken = _take(transaction, owner, model, turn, share)
            leases += taken
            room[turn] -= len(taken)
            if len(taken) < share or not room[turn]:
                del room[turn]
    return leases


def _take(transaction: Transaction, owner: str, model: str, turn: TenantTurn, limit: int) -> list[LineLease]:
    """Claims lines of a tenant. While it has new lines, at most half of the lines of two turns are due ones."""
    due = transaction.rows(due_query(), turn.tenant, model, limit) if turn.has_due else []
    num_new = limit - min(len(due), (limit + turn.num_turns % 2) // 2)
    new: list[LineLease] = []
    if turn.has_new and num_new:
        batches = transaction.rows(next_query(), turn.tenant, model, min(num_new, _MAX_BATCHES))
        new = _take_next(transaction, owner, batches, num_new)
    return take_due(transaction, owner, due[: limit - len(new)]) + new


def next_query() -> str:
    """Returns the statement that finds batches of a tenant with lines that were never claimed, oldest turn first."""
    return f"""
        SELECT {_NEXT} FROM roost_batches
        WHERE tenant = ? AND model = ? AND status = 'in_progress' AND next_line <= num_lines
        ORDER BY claimed, created, id LIMIT ? {{skip_locked}}
    """


def _take_next(transaction: Transaction, owner: str, batches: Sequence[Sequence[Any]], limit: int) -> list[LineLease]:
    """Claims the next lines of batches, an equal number of each.

    Args:
      batches: Rows of `_NEXT`.
    """
    leases, rows = list[LineLease](), list[Any]()
    for turn, (tenant, batch, model, input_file, first, last) in enumerate(batches):
        share = -(-(limit - len(leases)) // (len(batches) - turn))
        end = min(first + share, last + 1)
        transaction.execute(
            "UPDATE roost_batches SET next_line = ?, claimed = {now} + ? WHERE tenant = ? AND id = ?",
            end,
            1e-6 * (turn or len(batches)),  # the first batch, which got the most lines, is the last one next time
            tenant,
            batch,
        )
        numbers = file_table.numbers_at(transaction, tenant, input_file, first, end)
        rows += [value for number in numbers for value in (tenant, batch, number, model, owner)]
        leases += [LineLease(tenant, batch, number, 1) for number in numbers]
    if leases:
        transaction.execute(
            f"""
            INSERT INTO roost_batch_claims (tenant, batch, number, model, owner, fence, lease_until)
            VALUES {", ".join([f"(?, ?, ?, ?, ?, 1, {{now}} + {LEASE_S})"] * len(leases))}
            """,
            *rows,
        )
    return leases


def _claims(transaction: Transaction, leases: Sequence[LineLease]) -> list[LineClaim]:
    """Returns the lines of some leases, except lines whose batch or file was deleted."""
    if not leases:
        return []
    rows = transaction.rows(
        f"""
        SELECT roost_batch_claims.tenant, batch, roost_batch_claims.number, line, roost_batches.model,
            expires < {{now}}, num_deaths, num_lone_deaths FROM roost_batch_claims
        JOIN roost_batches ON roost_batches.tenant = roost_batch_claims.tenant AND id = batch
        JOIN roost_file_lines ON roost_file_lines.tenant = roost_batch_claims.tenant AND file = input_file
            AND roost_file_lines.number = roost_batch_claims.number
        WHERE (roost_batch_claims.tenant, batch, roost_batch_claims.number)
            IN (VALUES {placeholders(len(leases), 3)})
        """,
        *(value for lease in leases for value in (lease.tenant, lease.batch, lease.number)),
    )
    found = {
        (tenant, batch, number): (bytes(line), model, bool(is_expired), *deaths)
        for tenant, batch, number, line, model, is_expired, *deaths in rows
    }
    known = ((lease, found.get((lease.tenant, lease.batch, lease.number))) for lease in leases)
    return [LineClaim(lease, *fields) for lease, fields in known if fields is not None]
