"""Writes of many responses in one transaction: entries of logs, and additions for which the oldest rows make room."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ...database.database import Transaction
from ...database.errors import FencedError
from ...database.group_commit import Work, run_each
from ...storage.objects import Bounds
from ...storage.work import Lease, refused
from . import response_table
from .conversation_table import CONVERSATIONS
from .response_table import Append

DEFAULT: Final = Bounds()
"""Limits in a database that replicas share."""


@dataclass(frozen=True, slots=True)
class Addition[T]:
    """A write that adds to the responses or conversations of a tenant, whose oldest ones make room."""

    tenant: str
    work: Work[T]

    def __call__(self, transaction: Transaction) -> T:
        """Runs the write."""
        return self.work(transaction)


def run_all(transaction: Transaction, works: Sequence[Work[Any]], bounds: Bounds = DEFAULT) -> list[Any]:
    """Returns the result of each write, or the error with which it was refused. Appends run first.

    At the end, room is made once for all additions of a tenant.
    """
    appends = [work for work in works if isinstance(work, Append)]
    held = response_table.append_all(transaction, appends) if appends else set()
    others = iter(run_each(transaction, [work for work in works if not isinstance(work, Append)]))
    if owners := sorted({work.tenant for work in works if isinstance(work, Addition)}):
        for owner in owners:
            response_table.make_room(transaction, owner, bounds)
        CONVERSATIONS.remove_hidden(transaction)  # so that hidden rows become no more while others are added
    return [_result(work, held) if isinstance(work, Append) else next(others) for work in works]


def _result(append: Append, held: Collection[Lease]) -> FencedError | None:
    return None if append.lease in held else refused(append.lease)
