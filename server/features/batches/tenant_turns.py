"""Turns of tenants when lines are claimed: the tenant whose last turn is oldest comes first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import batched
from typing import Final, NamedTuple

from ...database.database import Transaction, placeholders
from . import quotas
from .line_leases import IS_SUSPECT

_MAX_TENANTS: Final = 4
"""Maximum number of tenants whose lines a replica claims at a time."""

_MAX_LOOKED_AT: Final = 64
"""Maximum number of tenants with work that are searched for tenants with room for output."""


@dataclass(frozen=True, slots=True)
class Places:
    """Room of a replica for lines.

    Attributes:
      num_free: Maximum number of lines to claim.
      max_of_tenant: Maximum number of lines of one tenant that the replica runs.
      held: Number of lines of each tenant that it runs.
      takes_suspect: Whether it may claim a line that runs alone.
    """

    num_free: int
    max_of_tenant: int
    held: Mapping[str, int] = field(default_factory=dict)
    takes_suspect: bool = True

    def of(self, tenant: str) -> int:
        """Returns the maximum number of further lines of a tenant."""
        return max(self.max_of_tenant - self.held.get(tenant, 0), 0)


class TenantTurn(NamedTuple):
    """Turn of a tenant with work.

    Attributes:
      num_turns: Number of its turns before this one.
      has_new, has_due: Whether it has lines that were never claimed, and due lines.
    """

    tenant: str
    num_turns: int
    has_new: bool
    has_due: bool


def turns_query() -> str:
    """Returns the statement that finds the tenants with work, whose last turn is oldest first, as rows of `TenantTurn`.

    The statement jumps from tenant to tenant, so that many batches of one tenant do not slow it down. The order of the
    rows makes PostgreSQL use the indexes, independent of its statistics of the tenants.
    """
    tenant_after = "SELECT tenant FROM roost_batches WHERE status = 'in_progress' {} ORDER BY tenant LIMIT 1"
    return f"""
        WITH RECURSIVE owners (tenant) AS (
            SELECT ({tenant_after.format("")})
            UNION ALL
            SELECT ({tenant_after.format("AND tenant > owners.tenant")}) FROM owners WHERE owners.tenant IS NOT NULL
        ), found AS (
            SELECT owners.tenant, coalesce(num_turns, 0) AS num_turns, coalesce(claimed, 0) AS last_turn,
                (SELECT 1 FROM roost_batches WHERE roost_batches.tenant = owners.tenant AND model = ?
                    AND status = 'in_progress' AND next_line <= num_lines ORDER BY claimed, created, id LIMIT 1
                ) IS NOT NULL AS has_new,
                (SELECT 1 FROM roost_batch_claims WHERE roost_batch_claims.tenant = owners.tenant AND model = ?
                    AND lease_until < {{now}} AND NOT ({IS_SUSPECT}) ORDER BY lease_until LIMIT 1
                ) IS NOT NULL AS has_due
            FROM owners LEFT JOIN roost_batch_turns ON roost_batch_turns.tenant = owners.tenant
            WHERE owners.tenant IS NOT NULL
        )
        SELECT tenant, num_turns, has_new, has_due FROM found WHERE has_new OR has_due
        ORDER BY last_turn, tenant LIMIT {_MAX_LOOKED_AT}
    """


def open_turns(
    transaction: Transaction, model: str, places: Places, max_bytes: int
) -> tuple[list[str], list[TenantTurn]]:
    """Returns the tenants whose turns end, and the turns of those tenants among them that get lines."""
    passed, turns = list[str](), list[TenantTurn]()
    wanted = min(_MAX_TENANTS, places.num_free)
    found = [TenantTurn(*row) for row in transaction.rows(turns_query(), model, model)]
    for some in batched((turn for turn in found if places.of(turn.tenant)), _MAX_TENANTS):
        sizes = quotas.sizes(transaction, [turn.tenant for turn in some])
        for turn in some:
            if len(turns) == wanted:
                return passed, turns
            passed.append(turn.tenant)
            turns += [turn] if sizes[turn.tenant] < max_bytes else []
    return passed, turns


def end_turns(transaction: Transaction, tenants: Sequence[str]) -> None:
    """Moves tenants behind all others. Turns that another replica ends at the same time are skipped."""
    if not tenants:
        return
    transaction.execute(
        f"""
        INSERT INTO roost_batch_turns (tenant, claimed, num_turns)
        VALUES {", ".join(["(?, 0, 0)"] * len(tenants))} ON CONFLICT DO NOTHING
        """,
        *sorted(tenants),
    )
    # the first tenant, which got the most lines, is the last one next time
    places = " ".join(f"WHEN ? THEN {1e-6 * (turn or len(tenants)):f}" for turn in range(len(tenants)))
    transaction.execute(
        f"""
        UPDATE roost_batch_turns SET claimed = {{now}} + CASE tenant {places} END, num_turns = num_turns + 1
        WHERE tenant IN (
            SELECT tenant FROM roost_batch_turns WHERE tenant IN (VALUES {placeholders(len(tenants), 1)})
            {{skip_locked}})
        """,
        *tenants,
        *tenants,
    )
