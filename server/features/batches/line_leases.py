"""Leases of replicas on lines: how they are granted, extended, given back, and lost when a replica dies.

A line is due when it waits for another owner: it was given back, or its owner died and its lease has ended. A line
whose owners have died is suspected of being the cause, and runs alone.
"""

from collections.abc import Sequence
from typing import Any, Final

from ...database.database import Transaction, placeholders
from .batch_records import MAX_LONE_DEATHS, SUSPECT_DEATHS, LineLease

LEASE_S: Final = 15.0
"""Seconds after the last renewal at which a lease ends, so that others may claim the line."""

MAX_SUSPECTS: Final = 8
"""Maximum number of suspects that are searched for one whose tenant has room for output."""

_FIRST_PAUSE_S: Final = 0.25
_MAX_PAUSE_S: Final = 60.0
"""Maximum seconds for which a refused line waits. The pause doubles with each refusal."""

_MAX_DOUBLINGS: Final = 8
"""Number of refusals at which the pause reaches its maximum."""

_HELD: Final = "tenant = ? AND batch = ? AND number = ? AND fence = ?"

_IS_DEAD: Final = "CASE WHEN owner IS NULL THEN 0 ELSE 1 END"
_IS_LONE_DEAD: Final = "CASE WHEN owner IS NULL OR lone_fence <> fence THEN 0 ELSE 1 END"
"""Deaths of a due line's owner that are not counted yet."""

IS_SUSPECT: Final = (
    f"num_deaths + {_IS_DEAD} >= {SUSPECT_DEATHS} AND num_lone_deaths + {_IS_LONE_DEAD} < {MAX_LONE_DEATHS}"
)


def suspects_query() -> str:
    """Returns the statement that finds due lines that must run alone, by their tenants' last turns, oldest first."""
    return f"""
        SELECT tenant, batch, number, fence FROM roost_batch_claims
        WHERE model = ? AND lease_until < {{now}} AND num_deaths > 0 AND {IS_SUSPECT}
        ORDER BY coalesce((
            SELECT claimed FROM roost_batch_turns WHERE roost_batch_turns.tenant = roost_batch_claims.tenant
        ), 0), lease_until LIMIT {MAX_SUSPECTS} {{skip_locked}}
    """


def due_query() -> str:
    """Returns the statement that finds a tenant's due lines that need not run alone, the longest due first."""
    return f"""
        SELECT tenant, batch, number, fence FROM roost_batch_claims
        WHERE tenant = ? AND model = ? AND lease_until < {{now}} AND NOT ({IS_SUSPECT})
        ORDER BY lease_until LIMIT ? {{skip_locked}}
    """


def take_due(transaction: Transaction, owner: str, due: Sequence[Sequence[Any]]) -> list[LineLease]:
    """Claims lines that have been claimed before, and counts the deaths of their owners."""
    if not due:
        return []
    rows = transaction.rows(
        f"""
        UPDATE roost_batch_claims SET owner = ?, fence = fence + 1, lease_until = {{now}} + {LEASE_S},
            num_deaths = num_deaths + {_IS_DEAD}, num_lone_deaths = num_lone_deaths + {_IS_LONE_DEAD}
        WHERE (tenant, batch, number, fence) IN (VALUES {placeholders(len(due), 4)})
        RETURNING tenant, batch, number, fence
        """,
        owner,
        *(value for row in due for value in row),
    )
    taken = {LineLease(*row) for row in rows}
    leases = (LineLease(tenant, batch, number, fence + 1) for tenant, batch, number, fence in due)
    return [lease for lease in leases if lease in taken]


def mark_alone(transaction: Transaction, lease: LineLease) -> bool:
    """Records that a replica runs only this line, so that its death is attributed to the line.

    Returns:
      Whether the replica is still the line's owner.
    """
    query = f"UPDATE roost_batch_claims SET lone_fence = fence WHERE {_HELD}"
    return transaction.execute(query, *lease.values).rowcount == 1


def renew(transaction: Transaction, owner: str) -> list[LineLease]:
    """Extends all leases of a replica and returns them, except leases of lines that another transaction is ending."""
    query = f"""
        UPDATE roost_batch_claims SET lease_until = {{now}} + {LEASE_S} WHERE (tenant, batch, number) IN (
            SELECT tenant, batch, number FROM roost_batch_claims WHERE owner = ? {{skip_locked}})
        RETURNING tenant, batch, number, fence
    """
    return [LineLease(*row) for row in transaction.rows(query, owner)]


def release(transaction: Transaction, leases: Sequence[LineLease]) -> None:
    """Gives lines back, so that others may claim them immediately."""
    _give_back(transaction, leases, "0")


def refuse(transaction: Transaction, leases: Sequence[LineLease]) -> None:
    """Gives lines back that the replica could not run now. Others may claim them after a pause."""
    pause = f"""
        CASE WHEN num_refusals >= {_MAX_DOUBLINGS} THEN {_MAX_PAUSE_S} ELSE {_FIRST_PAUSE_S} * (1 << num_refusals) END
    """
    _give_back(transaction, leases, f"{{now}} + {pause}, num_refusals = num_refusals + 1")


def _give_back(transaction: Transaction, leases: Sequence[LineLease], lease_until: str) -> None:
    if leases:
        transaction.execute(  # locks them in one order, as `end` may lock the same rows at the same time
            f"""
            UPDATE roost_batch_claims SET owner = NULL, lease_until = {lease_until}
            WHERE (tenant, batch, number, fence) IN (
                SELECT tenant, batch, number, fence FROM roost_batch_claims
                WHERE (tenant, batch, number, fence) IN (VALUES {placeholders(len(leases), 4)})
                ORDER BY tenant, batch, number {{lock}})
            """,
            *(value for lease in leases for value in lease.values),
        )
