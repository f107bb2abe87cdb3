"""Files and batches in a database that replicas share."""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from functools import partial
from typing import Final
from uuid import uuid4

from ...database.database import Database
from ...database.group_commit import GroupCommit
from ...errors import kinds
from ...errors.request_errors import ApiError, bad_value
from ...tenancy.tenant import tenant
from ...tenancy.tenant_locks import TenantLocks
from . import batch_table, file_table
from .batch_records import BatchRecord, BatchStatus, BatchTotals, FileRecord, LineClaim, LineLease, LineResult

MAX_TOTAL_BYTES: Final = 16 * 2**30
"""Maximum bytes of all files of a tenant."""

_REPLY_S: Final = 5.0
"""Seconds after which a client gets an error while the database is away."""

_OWNER_S: Final = 2 * batch_table.LEASE_S
"""Seconds for which the end of a line is written. Its lease has ended by then, so others may claim the line."""

_INTERVAL_S: Final = 0.01
"""Minimum seconds between the beginnings of two transactions. An upload waits for several, one after the other."""

_PAGE_LINES: Final = 1000
"""Maximum number of lines that are read at a time."""

_FILE_ID: Final = re.compile("file-[0-9a-f]{32}")
_BATCH_ID: Final = re.compile("batch_[0-9a-f]{32}")
"""Patterns of ids. Other texts of clients don't reach the database: PostgreSQL refuses some characters."""


class BatchStore:
    """Files and batches of all tenants. Clients' methods see those of the current tenant only.

    Attributes:
      uploads: Turns of receiving a file, one per tenant at a time.
      has_work: Set when a batch was created here, and by a worker when it has room for lines.
      totals: Counts of all replicas at the last look; None before it.
      num_refused: Total writes of this replica that were refused by their fencing number.

    Args:
      database: Database with the store's tables.
      retention_s: Age from which on files and ended batches are deleted.
    """

    def __init__(self, database: Database, retention_s: float) -> None:
        self.uploads = TenantLocks()
        self.has_work = asyncio.Event()
        self.totals: BatchTotals | None = None
        self.num_refused = 0
        self._database = database
        self._commits = GroupCommit(database, _INTERVAL_S)
        self._retention_s = retention_s
        self._replica = uuid4().hex

    @property
    def is_stuck(self) -> bool:
        """Whether a transaction would delay the end of the process."""
        return self._database.is_stuck

    def close(self) -> None:
        """Closes the database."""
        self._database.close()

    async def begin_file(self, name: str) -> str:
        """Stores an empty file for the lines of a batch, and returns its id.

        Raises:
          ApiError: The tenant's files have their maximum size.
        """
        owner, file_id = tenant.get(), f"file-{uuid4().hex}"
        total = await self._database.run(lambda each: file_table.total_bytes(each, owner), timeout_s=_REPLY_S)
        if total >= MAX_TOTAL_BYTES:
            message = f"the files of this API key take {total} bytes, and may take {MAX_TOTAL_BYTES}: delete some"
            raise ApiError(kinds.STORE_FULL, message)
        begin = partial(file_table.begin, tenant=owner, file_id=file_id, purpose="batch", name=name)
        await self._commits.write(begin, _REPLY_S)
        return file_id

    async def add_lines(self, file_id: str, first: int, lines: Sequence[bytes]) -> None:
        """Adds lines to a file from `begin_file`; the first one has the number `first`."""
        add = partial(file_table.add_lines, tenant=tenant.get(), file_id=file_id, first=first, lines=lines)
        await self._commits.write(add, _REPLY_S)

    async def put_order(self, file_id: str, segment: int, offsets: Sequence[int]) -> None:
        """Stores the order in which the lines of a segment of a file run; see `file_table.put_order`."""
        put = partial(file_table.put_order, tenant=tenant.get(), file_id=file_id, segment=segment, offsets=offsets)
        await self._commits.write(put, _REPLY_S)

    async def finish_file(self, file_id: str, num_lines: int, num_bytes: int, url: str) -> FileRecord:
        """Makes a file whole, and returns it.

        Args:
          num_lines: Number of its lines.
          num_bytes: Size of all its lines.
          url: Endpoint of all its lines; empty if they name several.
        """
        owner = tenant.get()
        record = await self._commits.write(
            lambda each: file_table.finish(each, owner, file_id, num_lines, num_bytes, url), _REPLY_S
        )
        if record is None:
            raise _no_file(file_id)
        return record

    async def drop_file(self, file_id: str) -> None:
        """Deletes an upload that has failed; the next `look` of a replica deletes what is left of a large one."""
        owner = tenant.get()
        await self._commits.write(lambda each: file_table.hide(each, owner, file_id), _REPLY_S)
        await self._commits.write(lambda each: file_table.remove(each, owner, file_id), _REPLY_S)

    async def delete_file(self, file_id: str) -> None:
        """Deletes a file.

        Raises:
          ApiError: There is no such file, or a batch in progress reads it.
        """
        owner = tenant.get()
        await self.file(file_id)
        if not await self._commits.write(lambda each: batch_table.hide_file(each, owner, file_id), _REPLY_S):
            raise bad_value(None, f"{file_id} is the input of a batch in progress: cancel the batch first")

    async def file(self, file_id: str, param: str | None = None) -> FileRecord:
        """Returns a file.

        Raises:
          ApiError: There is no such file. `param` names the field with its id.
        """
        if not _FILE_ID.fullmatch(file_id):
            raise _no_file(file_id, param)
        owner = tenant.get()
        found = await self._database.run(lambda each: file_table.find(each, owner, file_id), timeout_s=_REPLY_S)
        if found is None:
            raise _no_file(file_id, param)
        return found

    async def files(self) -> Sequence[FileRecord]:
        """Returns all files, oldest first."""
        owner = tenant.get()
        return await self._database.run(lambda each: file_table.every(each, owner), timeout_s=_REPLY_S)

    async def content(self, record: FileRecord) -> AsyncGenerator[bytes]:
        """Yields the lines of a file, some at a time."""
        after = 0
        read = partial(file_table.lines, tenant=record.tenant, file_id=record.id, limit=_PAGE_LINES)
        while lines := await self._database.run(partial(read, after=after)):
            yield b"".join(line for _, line in lines)
            after = lines[-1][0]

    async def create(
        self, source: FileRecord, model: str, window: str, window_s: float, metadata: bytes
    ) -> BatchRecord:
        """Stores a new batch, whose lines replicas claim from now on.

        Args:
          model: Identity of the model.
          window: The client's `completion_window`, which is `window_s` seconds.
          metadata: JSON of the client's metadata.

        Raises:
          ApiError: The file was deleted meanwhile.
        """
        name = uuid4().hex
        batch = BatchRecord(
            source.tenant,
            f"batch_{name}",
            BatchStatus.IN_PROGRESS,
            model,
            source.url,
            source.id,
            f"file-{uuid4().hex}",
            f"file-{uuid4().hex}",
            window,
            metadata,
            created=0.0,
            expires=0.0,
            ended=None,
            num_lines=source.num_lines,
        )
        stored = await self._commits.write(partial(batch_table.insert, batch=batch, window_s=window_s), _REPLY_S)
        if stored is None:
            raise _no_file(source.id, "input_file_id")
        self.has_work.set()
        return stored

    async def batch(self, batch_id: str) -> BatchRecord:
        """Returns a batch.

        Raises:
          ApiError: There is no such batch.
        """
        if not _BATCH_ID.fullmatch(batch_id):
            raise _no_batch(batch_id)
        owner = tenant.get()
        return _found(
            batch_id,
            await self._database.run(lambda each: batch_table.find(each, owner, batch_id), timeout_s=_REPLY_S),
        )

    async def batches(self) -> Sequence[BatchRecord]:
        """Returns all batches, oldest first."""
        owner = tenant.get()
        return await self._database.run(lambda each: batch_table.every(each, owner), timeout_s=_REPLY_S)

    async def cancel(self, batch_id: str) -> BatchRecord:
        """Ends a batch, unless it has ended, and returns it. What its lines have ended with until now is kept.

        Raises:
          ApiError: There is no such batch.
        """
        if not _BATCH_ID.fullmatch(batch_id):
            raise _no_batch(batch_id)
        cancel = partial(batch_table.cancel, tenant=tenant.get(), batch_id=batch_id)
        return _found(batch_id, await self._commits.write(cancel, _REPLY_S))

    async def claim(self, model: str | None, limit: int) -> Sequence[LineClaim]:
        """Claims lines of any tenant for this replica.

        Args:
          model: Identity of the served model; None claims lines of batches that have expired, whatever their model.
          limit: Maximum number of lines.
        """
        claim = partial(batch_table.claim, owner=self._replica, model=model, limit=limit)
        return await self._commits.write(claim, _REPLY_S)

    async def renew(self) -> Sequence[LineLease]:
        """Extends the leases of this replica's lines, and returns them."""
        return await self._commits.write(lambda each: batch_table.renew(each, self._replica), _REPLY_S)

    async def release(self, leases: Iterable[LineLease]) -> None:
        """Leaves lines to other replicas."""
        await self._commits.write(partial(batch_table.release, leases=list(leases)), 1.0)

    async def end(self, results: Mapping[LineLease, LineResult]) -> None:
        """Stores what lines have ended with, but for lines that belong to another replica by now, or to none."""
        held = await self._commits.write(partial(batch_table.end, results=results), _OWNER_S)
        self.num_refused += len(results) - len(held)

    async def look(self) -> None:
        """Counts for metrics, and deletes what is too old and files that were deleted by clients."""
        self.totals = await self._database.run(batch_table.totals)
        await self._commits.write(lambda each: batch_table.expire(each, self._retention_s), _REPLY_S)
        for owner, file_id in await self._commits.write(
            lambda each: file_table.expired(each, self._retention_s), _REPLY_S
        ):
            remove = partial(file_table.remove, tenant=owner, file_id=file_id)
            while await self._commits.write(remove, _REPLY_S):
                pass


def _found(batch_id: str, batch: BatchRecord | None) -> BatchRecord:
    if batch is None:
        raise _no_batch(batch_id)
    return batch


def _no_batch(batch_id: str) -> ApiError:
    return ApiError(kinds.NO_SUCH_OBJECT, f"there is no batch with the id {batch_id!r}")


def _no_file(file_id: str, param: str | None = None) -> ApiError:
    kind = kinds.NO_SUCH_OBJECT if param is None else kinds.INVALID_REQUEST
    return ApiError(kind, f"there is no file with the id {file_id!r}", param=param)
