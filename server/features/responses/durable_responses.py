"""Responses in a database, which survive their replica."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final
from uuid import uuid4

from ....engine import CheckpointFormat, RequestCheckpoint
from ...database.database import Database
from ...database.errors import FencedError
from ...database.errors import StoreUnavailableError as UnavailableError
from ...database.group_commit import INTERVAL_S, GroupCommit
from ...generation.delta import Delta
from ...tenancy.tenant import tenant
from ...text.conversation import ConversationMessage
from . import response_table
from .appends import Append, run_all
from .checkpoint_files import CheckpointFiles
from .logged_delta import pack_delta
from .records import Checkpoint, Claim, Job, Lease, LogEntry, ResponseRecord
from .response_store import ResponseLog, ResponseStore, StoredResponse, pack
from .response_table import LEASE_S
from .stats import StoreStats

MAX_RESPONSES: Final = 10_000
MAX_BYTES: Final = 2**30
"""Bounds of the responses that each tenant has in the database, beside those that are running."""

REPLY_S: Final = 5.0
"""Seconds after which a client gets an error while the database is away."""

_LAST_S: Final = 1.0
"""Seconds for the last writes of a replica that stops."""

_OWNER_S: Final = 2 * LEASE_S
"""Seconds for which an owner tries to write. Its lease has ended by then, so others may continue the response."""

_POLL_S: Final = 0.1
"""Seconds between two looks for events that another replica may have written."""

_OUTAGE_S: Final = 30.0
"""Seconds for which a follower waits for a database that is away."""

_RESPONSE_ID: Final = re.compile("resp_[0-9a-f]{32}")

_logger = logging.getLogger(__name__)


class DurableResponses(ResponseStore):
    """Keeps responses in a database that other replicas may share.

    Args:
      database: Database with the store's tables.
      retention_s: Age from which on responses are deleted.
      files: Files of checkpoints; None if none are taken.
      adopt_after_s: Seconds for which a response without an owner is left to replicas that continue it exactly.

    Attributes:
      stats: Counts for metrics.
      streams: For each open stream in the foreground, a function that stores what another replica needs to go on.
    """

    def __init__(
        self,
        database: Database,
        retention_s: float,
        adopt_after_s: float = 60.0,
        files: CheckpointFiles | None = None,
        stats: StoreStats | None = None,
    ) -> None:
        super().__init__()
        self.stats = stats or StoreStats()
        self.files = files
        self.streams: set[Callable[[], Awaitable[None]]] = set()
        self._database = database
        self._commits = GroupCommit(database, INTERVAL_S, run_all)
        self._retention_s = retention_s
        self._adopt_after_s = adopt_after_s
        self._replica = uuid4().hex
        self._logs: dict[tuple[str, str], DurableLog] = {}
        self._changed: dict[tuple[str, str], asyncio.Event] = {}

    @property
    def is_stuck(self) -> bool:
        """Whether a transaction would delay the end of the process."""
        return self._database.is_stuck

    @property
    def running_logs(self) -> Sequence["DurableLog"]:
        """Logs of the responses that this replica owns."""
        return list(self._logs.values())

    async def keep(self, response_id: str, response: bytes, history: bytes, output: ConversationMessage) -> None:
        record = ResponseRecord(tenant.get(), response_id, bytes(response), history, pack([output]))
        await self._commits.write(lambda each: response_table.put(each, record), REPLY_S)

    async def open(self, pending: StoredResponse, job: Job) -> ResponseLog:
        record = ResponseRecord(
            tenant.get(),
            pending.id,
            bytes(pending.response),
            pending.history,
            pending.output,
            is_background=True,
            is_streamed=pending.is_streamed,
            is_running=True,
        )
        insert = partial(response_table.insert, record=record, job=job, owner=self._replica)
        lease = await self._commits.write(insert, REPLY_S)
        return self._log(lease, is_streamed=pending.is_streamed, is_exact=job.engine is not None)

    async def hand_over(
        self, record: ResponseRecord, job: Job, entry: LogEntry, task: asyncio.Task[Any]
    ) -> "DurableLog":
        """Stores a response that another replica is to continue.

        Args:
          entry: All of its events and tokens so far.
          task: Task until whose end this replica stays the owner.

        Raises:
          StoreUnavailableError: The database is away, full or too slow.
        """
        insert = partial(response_table.insert, record=record, job=job, owner=self._replica, entry=entry)
        lease = await self._commits.write(insert, _LAST_S)
        self.stats.handovers += 1
        log = self._log(lease, is_streamed=True, is_exact=job.engine is not None)
        log.skip([entry])
        log.is_left = True
        log.hold(task)
        return log

    async def hand_over_streams(self) -> None:
        """Stores the responses of all open streams, which nothing is sent of any more."""
        streams = list(self.streams)
        results = await asyncio.gather(*(hand_over() for hand_over in streams), return_exceptions=True)
        if failures := [result for result in results if isinstance(result, Exception)]:
            text = "%d of %d streams cannot be continued by other replicas: %s"
            _logger.warning(text, len(failures), len(streams), failures[0])

    async def find(self, response_id: str) -> StoredResponse | None:
        if not _RESPONSE_ID.fullmatch(response_id):
            return None
        owner = tenant.get()
        found = await self._database.run(lambda each: response_table.find(each, owner, response_id), timeout_s=REPLY_S)
        return None if found is None else stored_response(found)

    async def seize(self, response_id: str) -> "tuple[DurableLog, int] | None":
        seize = partial(response_table.seize, owner=self._replica, tenant=tenant.get(), response_id=response_id)
        claim = await self._commits.write(seize, REPLY_S)
        if claim is None:
            return None
        log, task = self.log_of(claim), asyncio.current_task()
        assert task is not None
        log.hold(task)
        return log, log.num_events

    async def remove(self, response_id: str) -> None:
        owner = tenant.get()
        await self._commits.write(lambda each: response_table.delete(each, owner, response_id), REPLY_S)

    async def follow(self, stored: StoredResponse, number: int, pause_s: float) -> AsyncGenerator[bytes | None]:
        loop = asyncio.get_running_loop()
        key, silent_since = (tenant.get(), stored.id), loop.time()
        while True:
            changed = self._changed.get(key)
            entries, is_running = await self._following(key, number)
            for event in _events(entries, number):
                yield event
                number, silent_since = number + 1, loop.time()
            if not is_running:
                return
            if not entries:
                await _wait(changed)
            if loop.time() - silent_since >= pause_s:
                silent_since = loop.time()
                yield None

    async def _following(self, key: tuple[str, str], number: int) -> tuple[Sequence[LogEntry], bool]:
        """Reads the next events. A database that is away for a moment is waited for."""
        give_up_at = asyncio.get_running_loop().time() + _OUTAGE_S
        while True:
            try:
                return await self._database.run(lambda each: response_table.follow(each, *key, number))
            except UnavailableError:
                if asyncio.get_running_loop().time() >= give_up_at:
                    raise
                await asyncio.sleep(_POLL_S)

    async def claim(self, model: str, limit: int, engine: str | None) -> Sequence[Claim]:
        """Adopts responses without a live owner.

        Args:
          model: Identity of the served model.
          limit: Maximum number of responses.
          engine: Identity of the engine; None if it cannot continue responses exactly.
        """
        claim = partial(
            response_table.claim,
            owner=self._replica,
            model=model,
            limit=limit,
            engine=engine,
            after_s=self._adopt_after_s,
        )
        claims = await self._commits.write(claim, REPLY_S)
        self.stats.adoptions += len(claims)
        return claims

    def log_of(self, claim: Claim) -> "DurableLog":
        """Returns the log of an adopted response, after its last entry. No task holds it yet."""
        log = self._log(claim.lease, is_streamed=claim.record.is_streamed, is_exact=claim.is_exact)
        log.skip(claim.entries)
        log.checkpoint = claim.checkpoint
        return log

    async def renew(self) -> Sequence[tuple[str, str]]:
        """Extends the leases that tasks of this replica hold, ends its other ones, and counts running responses.

        Returns:
          Tenants and ids of responses that this replica still generates, but owns no more.
        """
        written = {key: log.lease for key, log in self._logs.items()}
        renew = partial(response_table.renew, owner=self._replica, leases=list(written.values()))
        held = set(await self._commits.write(renew, REPLY_S))
        strays = held - {log.lease for log in self._logs.values()}  # their tasks have ended early, or never began
        self.stats.unattended = len(strays)
        if strays:
            await self._commits.write(lambda each: response_table.release(each, strays), REPLY_S)
        await self._count_running()
        return [key for key, lease in written.items() if lease not in held and key in self._logs]

    async def _count_running(self) -> None:
        """Counts running responses for metrics, and says when more of them than before wait in vain."""
        patience_s = self._adopt_after_s + 2 * LEASE_S
        count = partial(response_table.count_running, patience_s=patience_s)
        earlier = self.stats.abandoned
        self.stats.running, self.stats.orphaned, self.stats.abandoned = await self._database.run(count)
        if self.stats.abandoned > earlier:
            text = (
                "%d background responses have waited for over %g s: no replica that serves their model has a free slot"
            )
            _logger.warning(text, self.stats.abandoned, patience_s)

    async def expire(self) -> None:
        """Deletes responses beyond the bounds, and files of checkpoints that no response refers to."""
        expire = partial(
            response_table.expire, max_age_s=self._retention_s, max_responses=MAX_RESPONSES, max_bytes=MAX_BYTES
        )
        await self._commits.write(expire, REPLY_S)
        if self.files is not None:
            await self.files.sweep(await self._database.run(response_table.checkpoint_names, timeout_s=REPLY_S))

    async def close(self) -> None:
        """Leaves this replica's running responses to others, and closes the database."""
        leases = [log.lease for log in self._logs.values()]
        try:
            if leases:
                await self._commits.write(lambda each: response_table.release(each, leases), _LAST_S)
        except UnavailableError as error:
            _logger.warning("running responses can be adopted in %g s only: %s", LEASE_S, error)
        self._database.close()
        if self.files is not None:
            self.files.close()

    async def write_entry(self, log: "DurableLog", entry: LogEntry, final: tuple[bytes, bytes] | None = None) -> None:
        """Commits an entry of a log, and with the last one the final response and its packed message.

        Raises:
          FencedError: Another replica owns the response, or it was deleted.
          UnavailableError: The database was away for too long.
        """
        lease = log.lease
        try:
            if final is None:
                await self._commits.write(Append(lease, entry), _OWNER_S)
            else:
                await self._commits.write(lambda each: response_table.end(each, lease, entry, *final), _OWNER_S)
        except FencedError:
            self.stats.refusals += 1
            self._forget(log)
            raise
        except UnavailableError:
            self._forget(log)
            raise
        log.num_committed = entry.first_token + entry.num_tokens
        self._wake(log)
        if final is not None:
            self._forget(log)
            await self._replace_checkpoint(log, None)

    async def set_checkpoint(self, log: "DurableLog", checkpoint: Checkpoint) -> None:
        """Refers to the file of a checkpoint once the log has all of its tokens, and deletes the one before.

        Raises:
          FencedError: The response has ended, or another replica owns it.
          UnavailableError: The database is away.
        """
        while log.num_committed < checkpoint.num_tokens:
            if self._logs.get(log.key) is not log or log.is_left:
                raise FencedError(f"{log.lease.id} has ended, or was left to others")
            await self._changed[log.key].wait()
        lease = log.lease
        await self._commits.write(lambda each: response_table.set_checkpoint(each, lease, checkpoint), REPLY_S)
        await self._replace_checkpoint(log, checkpoint)

    async def checkpoint_of(self, claim: Claim, formats: CheckpointFormat) -> RequestCheckpoint | None:
        """Returns the latest checkpoint of an adopted response; None if there is no usable one."""
        if self.files is None or claim.checkpoint is None:
            return None
        return await self.files.read(claim.checkpoint.name, formats)

    async def _replace_checkpoint(self, log: "DurableLog", checkpoint: Checkpoint | None) -> None:
        earlier, log.checkpoint = log.checkpoint, checkpoint
        if self.files is not None and earlier is not None and earlier != checkpoint:
            await self.files.delete(earlier.name)

    async def give_up(self, log: "DurableLog") -> None:
        """Ends the lease of a log, so that others may adopt its response at once."""
        self._forget(log)
        await self._commits.write(lambda each: response_table.release(each, [log.lease]), _LAST_S)

    def hold(self, log: "DurableLog", task: asyncio.Task[Any]) -> None:
        """Renews the lease of a log until a task has ended, whatever ends it. Leases of no task are never renewed."""
        self._logs[log.key] = log
        self._changed.setdefault(log.key, asyncio.Event())
        task.add_done_callback(lambda _: self._forget(log))

    def _log(self, lease: Lease, *, is_streamed: bool, is_exact: bool) -> "DurableLog":
        return DurableLog(self, lease, is_streamed=is_streamed, is_exact=is_exact)

    def _wake(self, log: "DurableLog") -> None:
        if (changed := self._changed.get(log.key)) is not None:
            self._changed[log.key] = asyncio.Event()
            changed.set()

    def _forget(self, log: "DurableLog") -> None:
        if self._logs.get(log.key) is log:
            del self._logs[log.key]
            self._changed.pop(log.key).set()


class DurableLog(ResponseLog):
    """Log of a response that this replica owns.

    Attributes:
      lease: Lease that all writes are checked against.
      key: Tenant and response id.
      is_exact: Whether one engine decodes all tokens, so that a checkpoint is of use.
      num_events: Number of events so far.
      num_committed: Number of tokens in the database.
      checkpoint: Latest checkpoint in the database; None if there is none.
      is_left: Whether only other replicas append to the log.
    """

    def __init__(self, store: DurableResponses, lease: Lease, *, is_streamed: bool, is_exact: bool) -> None:
        self.lease = lease
        self.key = lease.tenant, lease.id
        self.is_exact = is_exact
        self.num_events = 0
        self.num_committed = 0
        self.checkpoint: Checkpoint | None = None
        self.is_left = False
        self._store = store
        self.is_streamed = is_streamed
        self._num_entries = 0
        self._num_tokens = 0

    def hold(self, task: asyncio.Task[Any]) -> None:
        self._store.hold(self, task)

    def skip(self, entries: Sequence[LogEntry]) -> None:
        """Continues after the entries of earlier owners."""
        if entries:
            self._count(entries[-1])
            self.num_committed = self._num_tokens

    async def append(self, events: Sequence[bytes], delta: Delta | None = None) -> None:
        await self._store.write_entry(self, self._next(events, delta))

    async def end(self, events: Sequence[bytes], response: bytes, output: ConversationMessage, status: str) -> None:
        await self._store.write_entry(self, self._next(events, None), (bytes(response), pack([output])))
        self._store.stats.ended[status] += 1

    async def release(self) -> bool:
        await self._store.give_up(self)
        return True

    def _next(self, events: Sequence[bytes], delta: Delta | None) -> LogEntry:
        num_tokens = 0 if delta is None else len(delta.token_ids)
        entry = LogEntry(
            self._num_entries,
            self.num_events,
            len(events),
            self._num_tokens,
            num_tokens,
            b"" if delta is None else pack_delta(delta),
            b"".join(events) if self.is_streamed else b"",
        )
        self._count(entry)
        return entry

    def _count(self, last: LogEntry) -> None:
        self._num_entries = last.number + 1
        self.num_events = last.first_event + last.num_events
        self._num_tokens = last.first_token + last.num_tokens


def stored_response(record: ResponseRecord) -> StoredResponse:
    """Returns a record as the API reads it."""
    return StoredResponse(
        record.id, record.response, record.history, record.output, record.is_background, record.is_streamed
    )


async def _wait(changed: asyncio.Event | None) -> None:
    """Waits for this replica's next commit to a log, or for a moment if another one may write it."""
    if changed is None:
        await asyncio.sleep(_POLL_S)
        return
    try:
        async with asyncio.timeout(1.0):
            await changed.wait()
    except TimeoutError:
        pass


def _events(entries: Sequence[LogEntry], number: int) -> Iterator[bytes]:
    """Yields the events from a number on. An event ends with an empty line, and has none within."""
    for entry in entries:
        events = entry.events.split(b"\n\n")[:-1]
        for event in events[max(number - entry.first_event, 0) :]:
            yield event + b"\n\n"
