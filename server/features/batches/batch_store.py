"""Files and batches in a database."""

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from itertools import batched
from typing import Final
from uuid import uuid4

from ...database.database import Database, Lane, Transaction
from ...database.dialects import LEASE_S
from ...database.errors import StoreUnavailableError
from ...database.group_commit import MAX_SHARE, GroupCommit, WriteLoad
from ...errors.request_errors import ApiError, bad_value
from ...storage.objects import TenantObjects, missing
from ...storage.work import Lease
from ...storage.worker import Leases
from ...tenants import TenantLocks, tenant
from . import batch_table, file_table
from .batch_lines import LineResult
from .batch_table import BATCHES, BatchRecord, BatchStatus, BatchTotals, LineEnd, LineTable
from .file_table import FILES, FileRecord

_OWNER_S: Final = 2 * LEASE_S
"""Timeout of writing a line's result, in seconds. Its lease has ended by then, so others may claim the line."""

_INTERVAL_S: Final = 0.01
"""Minimum seconds between the beginnings of two transactions. An upload waits for several in sequence."""

_RESULTS_S: Final = 0.05
"""Minimum seconds between the beginnings of two transactions that store results of lines."""

_LINES_OF_ROW: Final = 8
"""Number of lines whose storage takes the time of one row: lines are appended to their table, and have one index."""

_FILE_ID: Final = re.compile("file-[0-9a-f]{32}")
_BATCH_ID: Final = re.compile("batch_[0-9a-f]{32}")
"""Patterns of ids."""


class BatchStore:
    """Files and batches of all tenants. Methods that serve clients see only the current tenant's.

    Attributes:
      files, batches: Files and batches by the ids that clients send.
      uploads: Turns of checking and writing lines that have arrived, one per tenant at a time.
      has_work: Set when a batch was created here, and by a worker when it has room for lines.
      lines: Table of the lines that replicas share.
      leases: Leases of this replica on lines.
      totals: Counts of all replicas from the last `look`.
      retention_s: Age in seconds after which files and ended batches are deleted.
      num_ended: Total lines whose results this replica stored.

    Args:
      database: Database with the store's tables.
      retention_s: Age in seconds after which files and ended batches are deleted.
      max_bytes: Maximum bytes of the files of a tenant and of the output of its batches in progress.
    """

    def __init__(self, database: Database, retention_s: float, max_bytes: int = 16 * 2**30) -> None:
        self.uploads = TenantLocks()
        self.has_work = asyncio.Event()
        self.totals = BatchTotals()
        self.num_ended = 0
        database.probe = file_table.probe
        self._database = database
        commits = GroupCommit(database, _INTERVAL_S, lane=Lane.UPLOADS)
        self.files = TenantObjects(FILES, _FILE_ID, "file", database, commits)
        self.batches = TenantObjects(BATCHES, _BATCH_ID, "batch", database, commits)
        self._results = GroupCommit(database, _RESULTS_S, batch_table.end_all, Lane.UPLOADS)
        self.lines = LineTable(max_bytes)
        self.leases = Leases(database, self.lines)
        self.retention_s = retention_s

    def close(self) -> None:
        """Closes the database."""
        self._database.close()

    async def begin_file(self, name: str, num_bytes: int = 1) -> str:
        """Stores an empty file for the lines of a batch, and returns its id.

        Args:
          num_bytes: Minimum size of the whole file.

        Raises:
          ApiError: The tenant has reached its limit of files, lines or bytes, or the file would exceed it.
        """
        owner, file_id = tenant.get(), f"file-{uuid4().hex}"

        def begin(transaction: Transaction) -> None:
            file_table.check_quota(transaction, owner, self.lines.max_bytes, num_files=1, num_bytes=num_bytes)
            file_table.begin(transaction, owner, file_id, "batch", name)

        await self.files.commit(begin)
        return file_id

    async def add_lines(self, file_id: str, first: int, lines: Sequence[bytes], num_bytes: int) -> None:
        """Adds lines to a file from `begin_file`.

        Args:
          first: Number of the first line, from 1.
          num_bytes: Size of the file with these lines.

        Raises:
          ApiError: The lines would exceed the tenant's limit of lines or bytes.
        """
        num_bytes -= sum(map(len, lines))

        def add(transaction: Transaction, owner: str, file_id: str) -> None:
            file_table.add_lines(transaction, owner, file_id, first, some, num_bytes)
            file_table.check_quota(transaction, owner, self.lines.max_bytes)

        for some in batched(lines, MAX_SHARE.num_rows * _LINES_OF_ROW):
            size = sum(map(len, some))
            num_bytes += size
            await self.files.write(add, file_id, WriteLoad(len(some) // _LINES_OF_ROW, size))
            first += len(some)

    async def put_order(self, file_id: str, segment: int, offsets: Sequence[int]) -> None:
        """Stores the order in which the lines of a segment of a file run; see `file_table.put_order`."""
        put = partial(file_table.put_order, segment=segment, offsets=offsets)
        await self.files.write(put, file_id, WriteLoad(1, 2 * len(offsets)))

    async def finish_file(self, file_id: str, url: str, expires_s: float | None = None) -> FileRecord:
        """Marks a file as complete, and returns it; see `file_table.finish`."""
        record = await self.files.write(partial(file_table.finish, url=url, expires_s=expires_s), file_id)
        if record is None:
            raise missing("file", file_id)
        return record

    async def delete_file(self, file_id: str) -> None:
        """Deletes a file.

        Raises:
          ApiError: The file does not exist, or a batch in progress reads it.
        """
        await self.files.get(file_id)
        if not await self.files.write(batch_table.hide_file, file_id):
            raise bad_value(None, f"{file_id} is the input of a batch in progress: cancel the batch first")

    async def content(self, record: FileRecord) -> AsyncGenerator[bytes]:
        """Yields the lines of a file, several at a time. Waits if the database is unavailable for a moment.

        Raises:
          StoreUnavailableError: The database is unavailable, or the file was deleted. The lines so far are not the
            whole file.
        """
        after = num_bytes = 0
        while num_bytes < record.num_bytes:
            read = partial(file_table.lines, tenant=record.tenant, file_id=record.id, after=after)
            lines = await self._database.read(read)
            if not lines:
                raise StoreUnavailableError(f"{record.id} was deleted while it was sent")
            after = lines[-1][0]
            num_bytes += sum(len(line) for _, line in lines)
            yield b"".join(line for _, line in lines)

    async def create(self, batch: BatchRecord, window_s: float) -> BatchRecord:
        """Stores a new batch, whose lines replicas may then claim, and returns it with its times.

        Args:
          window_s: Seconds until it expires.

        Raises:
          ApiError: The file was deleted during the call, or the tenant has reached its limit of batches, files, lines
            or bytes.
        """

        def insert(transaction: Transaction) -> BatchRecord | None:
            more = {"num_batches": 1, "num_lines": batch.num_lines, "num_bytes": 1}  # the size of its output is unknown
            file_table.check_quota(transaction, batch.tenant, self.lines.max_bytes, **more)
            return batch_table.insert(transaction, batch, window_s)

        stored = await self.batches.commit(insert)
        if stored is None:
            raise no_input(batch.input_file)
        self.has_work.set()
        return stored

    async def shortage(self, batch: BatchRecord) -> str | None:
        """Returns why the lines of a batch in progress wait until its tenant deletes files; None if they run."""
        if batch.status != BatchStatus.IN_PROGRESS:
            return None
        kept = await self.batches.run(lambda each: file_table.kept_by(each, batch.tenant))
        most = self.lines.max_bytes
        return file_table.full(kept.num_bytes, most) if kept.num_bytes >= most else None

    async def end(self, lease: Lease, result: LineResult) -> bool:
        """Stores the result of a line if this replica still owns the line, and returns whether it does."""
        load = WriteLoad(1, len(result.line))
        end = LineEnd(lease, result)
        is_stored = await self._results.write(end, _OWNER_S, load, waits_for_room=True, owner=lease.tenant)
        self.num_ended += is_stored
        return is_stored

    async def look(self) -> None:
        """Updates the counts for metrics, and removes expired batches and files, and files deleted by clients."""
        self.totals = await self._database.run(batch_table.totals)
        await self.batches.commit(lambda each: batch_table.expire(each, self.retention_s))
        await self.files.commit(lambda each: file_table.expire(each, self.retention_s))
        while await self.files.commit(FILES.remove_hidden):
            pass


def no_input(file_id: str) -> ApiError:
    """Returns a 400 for a batch whose input does not exist."""
    return bad_value("input_file_id", f"there is no file with the id {file_id!r}")
