"""Entries of many logs, appended in one transaction."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ...database.database import Transaction
from ...database.errors import FencedError
from ...database.group_commit import Work, run_each
from . import response_table
from .records import Lease, LogEntry


@dataclass(frozen=True, slots=True)
class Append:
    """An entry that an owner appends to its log.

    All entries of a transaction share two statements. After each statement, the store's thread waits for the
    interpreter lock, which the engine's thread holds most of the time.

    Attributes:
      log_bytes: Bytes of the log with this entry.
    """

    lease: Lease
    entry: LogEntry
    log_bytes: int

    def __call__(self, transaction: Transaction) -> None:
        """Appends the entry.

        Raises:
          FencedError: Another replica owns the log.
        """
        if self.lease not in response_table.append_all(transaction, [(self.lease, self.entry, self.log_bytes)]):
            raise response_table.refused(self.lease)


def run_all(transaction: Transaction, works: Sequence[Work[Any]]) -> list[Any]:
    """Returns the result of each write, or the error with which it was refused. Appends run first."""
    appends = [(work.lease, work.entry, work.log_bytes) for work in works if isinstance(work, Append)]
    held = response_table.append_all(transaction, appends) if appends else set()
    others = iter(run_each(transaction, [work for work in works if not isinstance(work, Append)]))
    return [_result(work, held) if isinstance(work, Append) else next(others) for work in works]


def _result(append: Append, held: Collection[Lease]) -> FencedError | None:
    return None if append.lease in held else response_table.refused(append.lease)
