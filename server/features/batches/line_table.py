"""Lines of batches as work that replicas share, as functions of a transaction.

A batch begins as a range of lines, whose places follow the run order of its input.
"""

from collections.abc import Collection, Sequence
from typing import Final

from ...database.database import Transaction, placeholders
from ...storage import claims
from ...storage.claims import Claimant, Places
from ...storage.work import KEY, Claim, WorkTable
from . import file_table
from .batch_records import LineClaim

LINE_WORK: Final = WorkTable("roost_lines")
"""Claimed lines, and ranges of lines."""

_TABLE: Final = LINE_WORK.name

_MAX_BATCHES: Final = 4
"""Maximum number of expired batches from which a replica claims lines at a time."""

_IS_EXPIRED: Final = """
    (tenant, id) IN (SELECT tenant, id FROM roost_batches WHERE status = 'in_progress' AND expires < {now})
"""


class LineTable(WorkTable):
    """Lines of batches. A tenant without room for output gets none.

    Attributes:
      max_bytes: Maximum bytes of a tenant's files.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__(_TABLE)
        self.max_bytes = max_bytes

    def with_room(self, transaction: Transaction, tenants: Sequence[str]) -> Collection[str]:
        sizes = file_table.sizes(transaction, tenants)
        return [tenant for tenant in tenants if sizes[tenant] < self.max_bytes]

    def numbers_at(self, transaction: Transaction, name: tuple[str, str], first: int, end: int) -> Sequence[int]:
        query = "SELECT input_file FROM roost_batches WHERE tenant = ? AND id = ?"
        ((input_file,),) = transaction.rows(query, *name)
        return file_table.numbers_at(transaction, name[0], input_file, first, end)

    def claim(self, transaction: Transaction, owner: str, model: str, places: Places) -> list[LineClaim]:
        """Claims lines of any tenant for a replica."""
        return _lines(transaction, claims.claim(transaction, self, Claimant(owner, model), places))

    def claim_expired(self, transaction: Transaction, owner: str, limit: int) -> list[LineClaim]:
        """Claims lines of expired batches of any model. Such lines do not run any more.

        Args:
          limit: Maximum number of lines.
        """
        due = transaction.rows(
            f"""
            SELECT {KEY} FROM {_TABLE} WHERE is_range = 0 AND lease_until <= {{now}} AND {_IS_EXPIRED}
            ORDER BY lease_until LIMIT ? {{skip_locked}}
            """,
            limit,
        )
        found = self.take(transaction, owner, due)
        ranges = transaction.rows(
            f"""
            SELECT tenant, id, model, next_unit, num_units FROM {_TABLE} WHERE number = 0 AND {_IS_EXPIRED}
            LIMIT ? {{skip_locked}}
            """,
            min(limit - len(found), _MAX_BATCHES),
        )
        return _lines(transaction, found + self.take_new(transaction, owner, ranges, limit - len(found)))


def _lines(transaction: Transaction, found: Sequence[Claim]) -> list[LineClaim]:
    """Returns the lines that were claimed, except lines whose batch or file was deleted."""
    if not found:
        return []
    rows = transaction.rows(
        f"""
        SELECT {_TABLE}.tenant, {_TABLE}.id, {_TABLE}.number, line, roost_batches.model, expires < {{now}} FROM {_TABLE}
        JOIN roost_batches ON roost_batches.tenant = {_TABLE}.tenant AND roost_batches.id = {_TABLE}.id
        JOIN roost_file_lines ON roost_file_lines.tenant = {_TABLE}.tenant AND file = input_file
            AND roost_file_lines.number = {_TABLE}.number
        WHERE ({_TABLE}.tenant, {_TABLE}.id, {_TABLE}.number) IN (VALUES {placeholders(len(found), 3)})
        """,
        *(value for claim in found for value in claim.lease[:3]),
    )
    lines = {tuple(name): (bytes(line), model, bool(is_expired)) for *name, line, model, is_expired in rows}
    return [LineClaim(claim, *lines[claim.lease[:3]]) for claim in found if claim.lease[:3] in lines]
