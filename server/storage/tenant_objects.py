"""Stored objects of one kind as the requests of a server use them: each tenant sees its own."""

import re
from collections.abc import Callable
from typing import Final

from ..database.database import Database, Transaction
from ..database.group_commit import ONE_ROW, GroupCommit, Work, WriteLoad
from ..errors import kinds
from ..errors.request_errors import ApiError
from ..tenants import tenant
from .objects import ObjectTable, Page, PageSpec

REPLY_S: Final = 5.0
"""Seconds after which a client gets an error while the database is unavailable."""

_MAX_SHOWN: Final = 100
"""Maximum number of characters of an id in an error."""


class TenantObjects[Record]:
    """Objects of a table, by the ids that clients send.

    Args:
      table: Table of the objects.
      pattern: Pattern of valid ids. Other strings from clients never reach the database: PostgreSQL refuses some
        characters.
      noun: Name of an object in errors.
      database: Database with the table.
      commits: Commits the writes.
    """

    def __init__(
        self, table: ObjectTable[Record], pattern: re.Pattern[str], noun: str, database: Database, commits: GroupCommit
    ) -> None:
        self._table = table
        self._pattern = pattern
        self._noun = noun
        self.database = database
        self._commits = commits

    async def find(self, id: str) -> Record | None:
        """Returns an object; None if it does not exist."""
        return await self.read(self._table.find, id)

    async def get(self, id: str) -> Record:
        """Returns an object.

        Raises:
          ApiError: 404, the object does not exist.
        """
        if (found := await self.find(id)) is None:
            raise missing(self._noun, id)
        return found

    async def page(
        self, spec: PageSpec, read: Callable[[Transaction, str, PageSpec], Page[Record] | None]
    ) -> Page[Record] | None:
        """Returns a page of the objects; None if `spec.after` names none."""
        if spec.after is not None and not self._pattern.fullmatch(spec.after):
            return None
        owner = tenant.get()
        return await self.run(lambda each: read(each, owner, spec))

    async def read[T](self, read: Callable[[Transaction, str, str], T], id: str) -> T | None:
        """Reads an object by its tenant and id; returns None if no object may have the id."""
        if not self._pattern.fullmatch(id):
            return None
        owner = tenant.get()
        return await self.run(lambda each: read(each, owner, id))

    async def write[T](
        self, write: Callable[[Transaction, str, str], T], id: str, load: WriteLoad = ONE_ROW
    ) -> T | None:
        """Changes an object by its tenant and id; returns None if no object may have the id."""
        if not self._pattern.fullmatch(id):
            return None
        owner = tenant.get()
        return await self.commit(lambda each: write(each, owner, id), load)

    async def run[T](self, read: Callable[[Transaction], T]) -> T:
        """Runs a transaction that reads, for a client."""
        return await self.database.run(read, timeout_s=REPLY_S)

    async def commit[T](self, write: Work[T], load: WriteLoad = ONE_ROW) -> T:
        """Runs a write for a client; see `GroupCommit.write`."""
        return await self._commits.write(write, REPLY_S, load)


def missing(noun: str, id: str, param: str | None = None) -> ApiError:
    """Returns a 404 for an object that does not exist.

    Args:
      noun: Name of the object in the error.
      param: Field that has the id.
    """
    return ApiError(kinds.NO_SUCH_OBJECT, f"there is no {noun} with the id {id[:_MAX_SHOWN]!r}", param=param)
