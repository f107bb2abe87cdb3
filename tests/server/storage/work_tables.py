"""Tables of a kind of work on both databases, with a clock that tests move."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate

from databases import opened
from roost.server.database.database import Database, Transaction
from roost.server.database.dialects import LEASE_S
from roost.server.storage.claims import Claimant, Places, claim
from roost.server.storage.work import Claim, Lease, WorkTable

TABLE = "roost_work_of_tests"
MODEL = "model"


class Tables:
    """A kind of work in a database.

    Attributes:
      work: The kind.
      now: Time of the database's clock.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.work = WorkTable(TABLE)
        self.now = 1000.0

    def run[**P, T](self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **options: P.kwargs) -> T:
        """Runs a function of a transaction, and commits."""
        return self.database.run_now(lambda each: work(each, *args, **options), writes=True)

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        return self.run(lambda each: each.rows(f"{statement} RETURNING 1", *values))

    def rows_of(self, query: str) -> list[tuple[Any, ...]]:
        return self.run(lambda each: each.rows(query))

    def read(self, columns: str) -> list[tuple[Any, ...]]:
        return self.rows_of(f"SELECT {columns} FROM {TABLE} ORDER BY tenant, id, number")

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.run(lambda each: each.execute("UPDATE test_clock SET now = ?", self.now))

    def die(self) -> None:
        """Lets all leases end, as if all owners had died."""
        self.pass_time(LEASE_S + 1)

    def begun(self, tenant: str, id: str, owner: str = "first", **options: Any) -> Lease:
        return self.run(self.work.add, owner, (tenant, id), MODEL, **options)

    def make_range(self, tenant: str, id: str, num_units: int) -> None:
        self.run(self.work.add_range, tenant, id, MODEL, num_units)

    def claimed(self, limit: int, owner: str = "r", claimant: Claimant | None = None, **places: Any) -> list[Claim]:
        """Claims as many units as a replica has places for."""
        room = Places(limit, **{"max_of_tenant": limit, **places})
        return self.run(claim, self.work, claimant or Claimant(owner, MODEL), room)


@contextmanager
def work_tables(address: str) -> Iterator[Tables]:
    database = opened(address, clocked=True)
    for name in (TABLE, f"{TABLE}_turns"):
        database.run_now(lambda each, name=name: each.execute(f"DROP TABLE IF EXISTS {name}"), writes=True)
    for statement in WorkTable(TABLE).statements:
        database.run_now(lambda each, statement=statement: each.execute(statement), writes=True)
    yield Tables(database)
    for name in (TABLE, f"{TABLE}_turns"):
        database.run_now(lambda each, name=name: each.execute(f"DROP TABLE IF EXISTS {name}"), writes=True)
    database.close()
