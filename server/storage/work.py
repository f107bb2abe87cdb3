"""Ownership of work that replicas share, as functions of a transaction.

Each kind of work has a table with a row for each unit of work that a replica runs or that waits for one. The owner of
a unit holds a lease, which it renews. When the lease has ended, or was given back, the unit is due, and another
replica may claim it under the next fencing number. Each write of an owner checks its number in the transaction that
writes, so that a former owner writes nothing.

An owner that gives a unit back sets `owner` to NULL, so a lease that ended with an owner means that the owner has died.
A unit whose owners have died is a suspect, and runs alone. `lone_fence` is the number of the last owner that did so:
only deaths of such owners count in `num_lone_deaths`.

Work of very many units begins as one row, a range, which stands for those units that were never claimed.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import batched, chain
from typing import Any, Final, NamedTuple

from ..database.database import Transaction, placeholders
from ..database.errors import FencedError
from .objects import Name, Table

SUSPECT_DEATHS: Final = 2
"""Number of deaths of its owners at which a unit is a suspect, and runs alone."""

MAX_LONE_DEATHS: Final = 3
"""Number of deaths of owners that ran a unit alone, after which it must not run again."""

_MAX_NAMED: Final = 250
"""Maximum number of units that a statement names."""

_FIRST_PAUSE_S: Final = 0.25
_MAX_PAUSE_S: Final = 60.0
"""Maximum seconds for which a refused unit waits. The pause doubles with each refusal."""

_MAX_DOUBLINGS: Final = 8
"""Number of refusals at which the pause reaches its maximum."""

KEY: Final = "tenant, id, number, fence"
_HELD: Final = "owner IS NOT NULL"
IS_OWNED: Final = "owner > '' AND lease_until > {now}"
"""Condition of units that a replica runs."""

IS_WAITING: Final = "is_range = 0 AND lease_until <= {now} - ?"
"""Condition of units that have waited for an owner for at least these seconds."""

_MAX_COUNTED: Final = 100_000
"""Maximum number of units that are counted for a metric."""

_IS_DEAD: Final = "CASE WHEN owner IS NULL THEN 0 ELSE 1 END"
_IS_LONE_DEAD: Final = "CASE WHEN owner IS NULL OR lone_fence <> fence THEN 0 ELSE 1 END"
"""Deaths of a due unit's owner that are not counted yet."""

IS_SUSPECT: Final = (
    f"num_deaths + {_IS_DEAD} >= {SUSPECT_DEATHS} AND num_lone_deaths + {_IS_LONE_DEAD} < {MAX_LONE_DEATHS}"
)


class Lease(NamedTuple):
    """Right of one replica to write the results of a unit.

    Attributes:
      id: Id of the work.
      number: Number of the unit, from 1; 1 for work of one unit.
      fence: Fencing number. Each new owner gets a higher number, and writes with a lower one are refused.
    """

    tenant: str
    id: str
    number: int
    fence: int

    @property
    def name(self) -> Name:
        """Tenant and id of the work."""
        return self.tenant, self.id


@dataclass(frozen=True, slots=True)
class Claim:
    """A unit that a replica has claimed.

    Attributes:
      num_deaths: Number of earlier owners that died.
      num_lone_deaths: Number of these owners that ran no other unit.
      engine: Engine that can continue the unit exactly; None if none or any can.
      num_bytes: Bytes that its owners have stored.
    """

    lease: Lease
    num_deaths: int = 0
    num_lone_deaths: int = 0
    engine: str | None = None
    num_bytes: int = 0

    @property
    def is_deadly(self) -> bool:
        """Whether the unit has reached the maximum number of lone deaths, and must not run again."""
        return self.num_lone_deaths >= MAX_LONE_DEATHS

    @property
    def is_suspect(self) -> bool:
        """Whether the unit may have caused the deaths of its owners, and must run alone."""
        return self.num_deaths >= SUSPECT_DEATHS and not self.is_deadly


@dataclass(frozen=True, slots=True)
class Unit:
    """Row of a unit of work, or of a range of units.

    Attributes:
      id: Id of the work.
      number: Number of the unit, from 1; 0 for a range.
      model: Identity of the model of the replicas that may claim it.
      owner: Name of the replica that runs it; None if it was given back.
      lease_until: End of the lease, or of the pause after which it is due again; of a range, its last turn.
      lone_fence: Fencing number of the last owner that ran it alone.
      num_refusals: Number of times that a replica could not run it.
      is_range: Whether it stands for units from `next_unit` to `num_units`.
      fence, num_deaths, num_lone_deaths, engine, num_bytes: See `Lease` and `Claim`.
    """

    tenant: str
    id: str
    number: int
    fence: int
    model: str
    engine: str | None
    owner: str | None
    lease_until: float
    num_bytes: int
    num_deaths: int
    num_lone_deaths: int
    lone_fence: int
    num_refusals: int
    is_range: bool
    next_unit: int
    num_units: int


class WorkTable(Table[Unit]):
    """Table of a kind of work. Subclasses say whose work may run, and which numbers the units of a range have.

    Args:
      name: Name of the table.
    """

    def __init__(self, name: str) -> None:
        indexes = {
            "due": "(model, tenant, is_range, lease_until)",
            "suspects": "(model, lease_until) WHERE num_deaths > 0",
            "owners": "(owner)",
        }
        super().__init__(name, Unit, key=("tenant", "id", "number"), indexes=indexes)

    @property
    def statements(self) -> Iterator[str]:
        """Statements that create the table, and that of the tenants' turns."""
        yield from super().statements
        numbers = "last_turn DOUBLE PRECISION NOT NULL, num_turns BIGINT NOT NULL"
        yield f"CREATE TABLE {self.name}_turns (tenant TEXT NOT NULL PRIMARY KEY, {numbers})"

    def has_room(self, transaction: Transaction, tenant: str) -> bool:
        """Returns whether a tenant may get work now."""
        return True

    def numbers_at(self, transaction: Transaction, name: Name, first: int, end: int) -> Sequence[int]:
        """Returns the numbers of the units at the places from `first` to `end`, without `end`.

        Args:
          name: Tenant and id of the work.
        """
        return range(first, end)

    def add(
        self,
        transaction: Transaction,
        owner: str,
        name: Name,
        model: str = "",
        num_bytes: int = 0,
        engine: str | None = None,
        number: int = 1,
    ) -> Lease:
        """Adds a unit that a replica has begun, unless it is stored already.

        Args:
          name: Tenant and id of the work.
          model: Identity of the model of the replicas that may claim the unit; empty if none may.
          num_bytes, engine: See `Claim`.
          number: Number of the unit.
        """
        lease = Lease(*name, number, 1)
        transaction.execute(
            f"""
            INSERT INTO {self.name} ({KEY}, model, engine, owner, lease_until, num_bytes)
            VALUES (?, ?, ?, ?, ?, ?, ?, {{now}} + {{lease_s}}, ?) ON CONFLICT DO NOTHING
            """,
            *lease,
            model,
            engine,
            owner,
            num_bytes,
        )
        return lease

    def add_range(self, transaction: Transaction, tenant: str, id: str, model: str, num_units: int) -> None:
        """Adds units that any replica may claim. Call it once."""
        transaction.execute(
            f"""
            INSERT INTO {self.name} ({KEY}, model, lease_until, is_range, next_unit, num_units)
            VALUES (?, ?, 0, 1, ?, {{now}}, 1, 1, ?)
            """,
            tenant,
            id,
            model,
            num_units,
        )

    def seize(self, transaction: Transaction, owner: str, tenant: str, id: str, number: int = 1) -> Claim | None:
        """Makes a replica the owner of a unit, even if it has an owner; None if the unit does not exist."""
        query = f"SELECT {KEY} FROM {self.name} WHERE tenant = ? AND id = ? AND number = ? {{lock}}"
        found = transaction.rows(query, tenant, id, number)
        return next(iter(self.take(transaction, owner, found, is_seized=True)), None)

    def take(
        self, transaction: Transaction, owner: str, found: Sequence[Sequence[Any]], *, is_seized: bool = False
    ) -> list[Claim]:
        """Makes a replica the owner of units, and counts the deaths of their owners unless they were seized.

        Args:
          found: Tenant, id, number and fencing number of each, whose rows the transaction has locked.
        """
        deaths, lone_deaths = ("0", "0") if is_seized else (_IS_DEAD, _IS_LONE_DEAD)
        claims: dict[Lease, Claim] = {}
        for some in batched(found, _MAX_NAMED):
            rows = transaction.rows(
                f"""
                UPDATE {self.name} SET owner = ?, fence = fence + 1, lease_until = {{now}} + {{lease_s}},
                    num_deaths = num_deaths + {deaths}, num_lone_deaths = num_lone_deaths + {lone_deaths}
                WHERE ({KEY}) IN (VALUES {placeholders(len(some), 4)})
                RETURNING {KEY}, num_deaths, num_lone_deaths, engine, num_bytes
                """,
                owner,
                *chain.from_iterable(some),
            )
            claims |= {Lease(*row[:4]): Claim(Lease(*row[:4]), *row[4:]) for row in rows}
        leases = (Lease(tenant, id, number, fence + 1) for tenant, id, number, fence in found)
        return [claims[lease] for lease in leases if lease in claims]

    def take_new(
        self, transaction: Transaction, owner: str, ranges: Sequence[Sequence[Any]], limit: int
    ) -> list[Claim]:
        """Makes a replica the owner of the next units of ranges, an equal number of each.

        Args:
          ranges: Tenant, id, model, next and last place of each, whose rows the transaction has locked.
        """
        claims, rows = list[Claim](), list[Any]()
        for turn, (tenant, id, model, first, last) in enumerate(ranges):
            share = -(-(limit - len(claims)) // (len(ranges) - turn))
            end = min(first + share, last + 1)
            row = f"{self.name} {{}} WHERE tenant = ? AND id = ? AND number = 0"
            if end > last:
                transaction.execute(f"DELETE FROM {row.format('')}", tenant, id)
            else:
                # the first range, which got the most units, is the last one next time
                moved = row.format("SET next_unit = ?, lease_until = {now} + ?")
                transaction.execute(f"UPDATE {moved}", end, 1e-6 * (turn or len(ranges)), tenant, id)
            leases = [Lease(tenant, id, number, 1) for number in self.numbers_at(transaction, (tenant, id), first, end)]
            rows += [value for lease in leases for value in (*lease, model, owner)]
            claims += map(Claim, leases)
        if claims:
            transaction.execute(
                f"""
                INSERT INTO {self.name} ({KEY}, model, owner, lease_until)
                VALUES {", ".join(["(?, ?, ?, ?, ?, ?, {now} + {lease_s})"] * len(claims))}
                """,
                *rows,
            )
        return claims

    def renew(self, transaction: Transaction, owner: str, leases: Collection[Lease]) -> list[Lease]:
        """Extends the given leases that an owner still has, and returns all leases that it has in the database.

        Rows that another transaction has locked are skipped: that transaction extends or ends the lease.
        """
        held = [Lease(*row) for row in transaction.rows(f"SELECT {KEY} FROM {self.name} WHERE owner = ?", owner)]
        extend = f"""
            UPDATE {self.name} SET lease_until = {{now}} + {{lease_s}} WHERE (tenant, id, number) IN (
                SELECT tenant, id, number FROM {self.name} WHERE owner = ? {{skip_locked}})
        """
        kept = set(leases)
        wanted = [lease for lease in held if lease in kept]
        if len(wanted) == len(held):
            transaction.execute(extend, owner)
            return held
        for some in batched(wanted, _MAX_NAMED):  # takes PostgreSQL 20 times as long
            named = f"{extend} AND ({KEY}) IN (VALUES {placeholders(len(some), 4)})"
            transaction.execute(named, owner, *chain.from_iterable(some))
        return held

    def extend(self, transaction: Transaction, writes: Mapping[Lease, tuple[int, str | None]]) -> set[Lease]:
        """Extends the leases of owners that write, and notes bytes and engine.

        Call it in the transaction that stores the results.

        Args:
          writes: Bytes that each owner has stored, and the engine that can continue its unit exactly, if any.

        Returns:
          The leases whose holders are still the owners. The others must not write.
        """
        rows = transaction.rows(
            f"""
            WITH written (holder, name, part, fenced, bytes, decoder) AS (VALUES {placeholders(len(writes), 6)})
            UPDATE {self.name} SET lease_until = {{now}} + {{lease_s}}, num_bytes = bytes, engine = decoder FROM written
            WHERE tenant = holder AND id = name AND number = part AND fence = fenced AND {_HELD}
            RETURNING {KEY}
            """,
            *(value for lease, written in writes.items() for value in (*lease, *written)),
        )
        return {Lease(*row) for row in rows}

    def held(self, transaction: Transaction, lease: Lease) -> set[Lease]:
        """Locks a unit for a write that does not extend its lease; returns the lease if its holder is the owner."""
        return {Lease(*row) for row in transaction.rows(f"SELECT {KEY} FROM {self._owned(1)} {{lock}}", *lease)}

    def end(self, transaction: Transaction, leases: Sequence[Lease]) -> set[Lease]:
        """Removes units whose results the transaction stores.

        Returns:
          The leases whose holders were still the owners. Results of the others must not be stored.
        """
        ended = f"DELETE FROM {self._owned(len(leases))} RETURNING {KEY}"
        return {Lease(*row) for row in transaction.rows(ended, *chain.from_iterable(leases))}

    def _owned(self, count: int) -> str:
        """Returns the end of a statement on units that their owners still hold. Its values are the units' leases.

        Args:
          count: Number of units.
        """
        return f"{self.name} WHERE ({KEY}) IN (VALUES {placeholders(count, 4)}) AND {_HELD}"

    def count(self, transaction: Transaction, condition: str, *values: Any) -> int:
        """Returns the number of units of a condition, up to 100,000."""
        some = f"SELECT 1 FROM {self.name} WHERE {condition} LIMIT {_MAX_COUNTED}"
        ((count,),) = transaction.rows(f"SELECT count(*) FROM ({some}) AS counted", *values)
        return int(count)

    def drop(self, transaction: Transaction, tenant: str, id: str) -> None:
        """Removes all units of a work, including units of other replicas."""
        is_new = f"SELECT 1 FROM {self.name} WHERE tenant = ? AND id = ? AND number = 0 {{lock}}"
        transaction.rows(is_new, tenant, id)  # waits for a claim, whose units the next statement sees
        transaction.execute(f"DELETE FROM {self.name} WHERE tenant = ? AND id = ?", tenant, id)

    def set_alone(self, transaction: Transaction, lease: Lease, *, is_alone: bool = True) -> bool:
        """Records whether a replica runs only this unit, so that its death is attributed to the unit.

        Returns:
          Whether the replica is still the unit's owner.
        """
        update = f"""
            UPDATE {self.name} SET lone_fence = {"fence" if is_alone else "0"}
            WHERE tenant = ? AND id = ? AND number = ? AND fence = ? AND {_HELD}
        """
        return transaction.execute(update, *lease).rowcount == 1

    def release(self, transaction: Transaction, leases: Collection[Lease], *, is_death: bool = False) -> None:
        """Gives units back, so that others may claim them immediately. Repeating it changes nothing.

        Args:
          is_death: Whether this counts as a death of the owner.
        """
        deaths = f", num_deaths = num_deaths + 1, num_lone_deaths = num_lone_deaths + {_IS_LONE_DEAD}"
        self._give_back(transaction, leases, f"{{now}}{deaths if is_death else ''}")

    def refuse(self, transaction: Transaction, leases: Collection[Lease]) -> None:
        """Gives units back that the replica could not run now. Others may claim them after a pause."""
        first = f"{_FIRST_PAUSE_S} * (1 << CAST(num_refusals AS INTEGER))"
        pause = f"CASE WHEN num_refusals >= {_MAX_DOUBLINGS} THEN {_MAX_PAUSE_S} ELSE {first} END"
        self._give_back(transaction, leases, f"{{now}} + {pause}, num_refusals = num_refusals + 1")

    def _give_back(self, transaction: Transaction, leases: Collection[Lease], lease_until: str) -> None:
        for some in batched(leases, _MAX_NAMED):
            transaction.execute(  # locks them in one order, as `end` may lock the same rows at the same time
                f"""
                UPDATE {self.name} SET owner = NULL, lease_until = {lease_until} WHERE ({KEY}) IN (
                    SELECT {KEY} FROM {self._owned(len(some))} ORDER BY tenant, id, number {{lock}})
                """,
                *chain.from_iterable(some),
            )


def check(lease: Lease, held: Collection[Lease]) -> None:
    """Checks that the holder of a lease was still the owner of its unit.

    Raises:
      FencedError: It was not.
    """
    if lease not in held:
        raise refused(lease)


def refused(lease: Lease) -> FencedError:
    """Returns the error for a write of a former owner."""
    return FencedError(f"{lease.id} was adopted, ended or deleted by another replica")
