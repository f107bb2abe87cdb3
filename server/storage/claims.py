"""Whose work a replica claims next: tenants take turns, and suspects run alone."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from ..database.database import Transaction, placeholders
from .work import IS_SUSPECT, KEY, Claim, WorkTable

_MAX_TENANTS: Final = 4
"""Maximum number of tenants whose units a replica claims at a time."""

_MAX_RANGES: Final = 4
"""Maximum number of ranges of a tenant from which a replica claims units at a time."""

_MAX_LOOKED_AT: Final = 64
"""Maximum number of tenants with work that are searched for tenants that may get some."""

_MAX_SUSPECTS: Final = 8
"""Maximum number of suspects that are searched for one whose tenant may get work."""

_DUE: Final = """
    is_range = 0 AND lease_until <= {now} AND (engine IS NULL OR engine = ? OR lease_until < {now} - ?)
"""
"""Condition of units that a claimant may own; its values are `Claimant.reserved`."""


@dataclass(frozen=True, slots=True)
class Claimant:
    """A replica that claims work.

    Attributes:
      owner: Name of the replica.
      model: Identity of the model that it serves.
      engine: Identity of its engine; None if it cannot continue work exactly.
      reserved_s: Seconds for which due work is reserved for an engine that can continue it exactly.
    """

    owner: str
    model: str
    engine: str | None = None
    reserved_s: float = 0.0

    @property
    def reserved(self) -> tuple[str | None, float]:
        """Values of the condition of due units."""
        return self.engine, self.reserved_s


@dataclass(frozen=True, slots=True)
class Places:
    """Room of a replica for units.

    Attributes:
      num_free: Maximum number of units to claim.
      max_of_tenant: Maximum number of units of one tenant that the replica runs.
      held: Number of units of each tenant that it runs.
      prefers_suspect: Whether a suspect comes before other units. Otherwise it comes last.
    """

    num_free: int
    max_of_tenant: int
    held: Mapping[str, int] = field(default_factory=dict)
    prefers_suspect: bool = True

    def of(self, tenant: str) -> int:
        """Returns the maximum number of further units of a tenant."""
        return max(self.max_of_tenant - self.held.get(tenant, 0), 0)


def claim(transaction: Transaction, work: WorkTable, claimant: Claimant, places: Places) -> list[Claim]:
    """Makes a replica the owner of one suspect, or of several other units.

    Tenants take turns, each with an equal share of the places; within a tenant, the units that have waited longest
    come first. Rows that another transaction has locked are skipped.
    """
    if places.prefers_suspect and (claims := _claim_suspect(transaction, work, claimant)):
        return claims
    claims = _claim_others(transaction, work, claimant, places)
    return claims or ([] if places.prefers_suspect else _claim_suspect(transaction, work, claimant))


def _claim_suspect(transaction: Transaction, work: WorkTable, claimant: Claimant) -> list[Claim]:
    rows = transaction.rows(suspects_query(work), claimant.model, *claimant.reserved)
    found = islice((row for row in rows if work.has_room(transaction, row[0])), 1)
    claims = work.take(transaction, claimant.owner, list(found))
    _end_turns(transaction, work, [claim.lease.tenant for claim in claims])
    return claims


def _claim_others(transaction: Transaction, work: WorkTable, claimant: Claimant, places: Places) -> list[Claim]:
    """Claims an equal number of units of each tenant; others get the places that one tenant does not use."""
    passed, turns = _open_turns(transaction, work, claimant, places)
    claims: list[Claim] = []
    room = {tenant: places.of(tenant) for tenant in turns}
    while room and len(claims) < places.num_free:
        for place, tenant in enumerate(left := list(room)):
            share = min(-(-(places.num_free - len(claims)) // (len(left) - place)), room[tenant])
            taken = _claim_of(transaction, work, claimant, tenant, share, turns[tenant])
            claims += taken
            room[tenant] -= len(taken)
            if len(taken) < share or not room[tenant]:
                del room[tenant]
    _end_turns(transaction, work, passed)
    return claims


def _claim_of(
    transaction: Transaction, work: WorkTable, claimant: Claimant, tenant: str, limit: int, num_turns: int
) -> list[Claim]:
    """Claims units of a tenant. While it has new ones, at most half of the units of two turns are due ones."""
    due = transaction.rows(due_query(work), claimant.model, tenant, *claimant.reserved, limit)
    num_new = limit - min(len(due), (limit + num_turns % 2) // 2)
    ranges = transaction.rows(ranges_query(work), claimant.model, tenant, min(num_new, _MAX_RANGES))
    new = work.take_new(transaction, claimant.owner, ranges, num_new)
    return work.take(transaction, claimant.owner, due[: limit - len(new)]) + new


def due_query(work: WorkTable) -> str:
    """Returns the statement that finds a tenant's due units that need not run alone, the longest due first."""
    return f"""
        SELECT {KEY} FROM {work.name} WHERE model = ? AND tenant = ? AND {_DUE} AND NOT ({IS_SUSPECT})
        ORDER BY lease_until LIMIT ? {{skip_locked}}
    """


def suspects_query(work: WorkTable) -> str:
    """Returns the statement that finds due units that must run alone, by the last turns of tenants, oldest first."""
    turn = f"SELECT last_turn FROM {work.name}_turns WHERE {work.name}_turns.tenant = {work.name}.tenant"
    return f"""
        SELECT {KEY} FROM {work.name} WHERE model = ? AND {_DUE} AND num_deaths > 0 AND {IS_SUSPECT}
        ORDER BY coalesce(({turn}), 0), lease_until LIMIT {_MAX_SUSPECTS} {{skip_locked}}
    """


def ranges_query(work: WorkTable) -> str:
    """Returns the statement that finds a tenant's ranges, the one with the oldest turn first."""
    return f"""
        SELECT tenant, id, model, next_unit, num_units FROM {work.name}
        WHERE model = ? AND tenant = ? AND is_range = 1 ORDER BY lease_until, id LIMIT ? {{skip_locked}}
    """


def turns_query(work: WorkTable) -> str:
    """Returns the statement that finds the tenants with work, whose last turn is oldest first.

    The statement jumps from tenant to tenant, so that the work of one tenant does not slow it down. The order of the
    rows makes PostgreSQL use the index, independent of its statistics of the tenants.
    """
    tenant_after = f"SELECT tenant FROM {work.name} AS found WHERE model = ? {{}} ORDER BY tenant LIMIT 1"
    unit = f"SELECT 1 FROM {work.name} AS found WHERE model = ? AND found.tenant = tenants.tenant AND {{}}"
    turn = f"coalesce((SELECT {{}} FROM {work.name}_turns AS turns WHERE turns.tenant = tenants.tenant), 0)"
    has = f"({unit} ORDER BY lease_until LIMIT 1) IS NOT NULL"
    return f"""
        WITH RECURSIVE tenants (tenant) AS (
            SELECT ({tenant_after.format("")})
            UNION ALL
            SELECT ({tenant_after.format("AND found.tenant > tenants.tenant")}) FROM tenants
            WHERE tenants.tenant IS NOT NULL
        ), waiting AS (
            SELECT tenants.tenant, {turn.format("num_turns")} AS num_turns, {turn.format("last_turn")} AS last_turn
            FROM tenants WHERE tenants.tenant IS NOT NULL
                AND ({has.format("is_range = 1")} OR {has.format(f"{_DUE} AND NOT ({IS_SUSPECT})")})
        )
        SELECT tenant, num_turns FROM waiting ORDER BY last_turn, tenant LIMIT {_MAX_LOOKED_AT}
    """


def _open_turns(
    transaction: Transaction, work: WorkTable, claimant: Claimant, places: Places
) -> tuple[Collection[str], Mapping[str, int]]:
    """Returns the tenants whose turns end, and those among them that get units, with their numbers of turns before."""
    passed, turns = list[str](), dict[str, int]()
    for tenant, num_turns in transaction.rows(turns_query(work), *[claimant.model] * 4, *claimant.reserved):
        if len(turns) == min(_MAX_TENANTS, places.num_free):
            break
        if places.of(tenant):
            passed.append(tenant)
            if work.has_room(transaction, tenant):
                turns[tenant] = num_turns
    return passed, turns


def _end_turns(transaction: Transaction, work: WorkTable, tenants: Collection[str]) -> None:
    """Moves tenants behind all others. Turns that another replica ends at the same time are skipped."""
    if not tenants:
        return
    transaction.execute(
        f"""
        INSERT INTO {work.name}_turns (tenant, last_turn, num_turns)
        VALUES {", ".join(["(?, 0, 0)"] * len(tenants))} ON CONFLICT DO NOTHING
        """,
        *sorted(tenants),
    )
    # the first tenant, which got the most units, is the last one next time
    places = " ".join(f"WHEN ? THEN {1e-6 * (turn or len(tenants)):f}" for turn in range(len(tenants)))
    transaction.execute(
        f"""
        UPDATE {work.name}_turns SET last_turn = {{now}} + CASE tenant {places} END, num_turns = num_turns + 1
        WHERE tenant IN (
            SELECT tenant FROM {work.name}_turns WHERE tenant IN (VALUES {placeholders(len(tenants), 1)})
            {{skip_locked}})
        """,
        *tenants,
        *tenants,
    )
