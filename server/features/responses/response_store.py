"""Stored responses, which clients may fetch or continue. Each tenant sees only its own.

A database that replicas share keeps all data that they need to continue a running response. A database in memory keeps
only data that clients may fetch or follow.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import batched
from typing import Any, Final

from ....engine import RequestSnapshot, RequestSnapshotFormat
from ...database.database import Database, Transaction
from ...database.errors import FencedError
from ...database.errors import StoreUnavailableError as UnavailableError
from ...database.group_commit import INTERVAL_S, GroupCommit, WriteLoad
from ...errors import kinds
from ...errors.request_errors import ApiError
from ...generation.admission import admission
from ...generation.delta import Delta
from ...storage.claims import Claimant, Places
from ...storage.objects import MAX_REMOVED, Bounds, Name
from ...storage.tenant_objects import missing
from ...storage.work import LEASE_S, Lease
from ...storage.worker import Leases
from ...tenancy.tenant import TenantLocks, tenant
from ...text.conversation import ConversationMessage
from . import event_table, part_table, response_table
from .appends import DEFAULT, Addition, run_all
from .checkpoint_files import CheckpointFiles
from .collector import StoreStats
from .conversation_store import ConversationStore
from .conversation_table import CONVERSATIONS, RUNNING, Item, Turn, load_of, locked
from .event_table import pack_delta
from .log_followers import LogFollowers
from .part_table import RESPONSE_ID, StoredPart, pack
from .records import Adoption, CheckpointReference, Job, LogEnd, LogEntry, ResponseRecord
from .response_table import RESPONSES, Append

MAX_RUNNING: Final = 1000
"""Limit on each tenant's running responses in the database. Beyond it, or beyond `Bounds.max_bytes` of these
responses and their logs, the tenant cannot start background responses."""

_MAX_KEPT: Final = 4 * 2**20
_MIN_KEPT: Final = 64 * 2**10
"""Bytes of a running response's events that memory keeps, at most and at least. The oldest are dropped."""

_MAX_DELETED: Final = 20
"""Number of responses that are deleted in one transaction: each may have a long log."""

REPLY_S: Final = 5.0
"""Seconds after which a client gets an error while the database is unavailable."""

_LAST_S: Final = 1.0
"""Seconds for the last writes of a replica that is shutting down."""

_OWNER_S: Final = 2 * LEASE_S
"""Seconds for which an owner tries to write. Its lease has ended by then, so others may continue the response."""

_logger = logging.getLogger(__name__)


class ResponseStore:
    """Keeps responses and conversations in a database.

    Args:
      database: Database with the store's tables.
      retention_s: Age in seconds after which responses are deleted.
      bounds: Limits on the ended responses, with their logs, and on the conversations of each tenant.
      files: Files of checkpoints; None if no checkpoints are taken.
      adopt_after_s: Seconds for which a response without an owner is reserved for replicas that can continue it
        exactly.

    Attributes:
      conversations: Conversations in the same database.
      is_shared: Whether other replicas may use the database.
      leases: Leases of this replica on running responses.
      locks: Locks under which a tenant's long expansions are made, one at a time.
      stats: Counts for metrics.
      streams: For each open foreground stream, a function that stores what another replica needs to continue it.
    """

    def __init__(
        self,
        database: Database,
        retention_s: float,
        adopt_after_s: float = 60.0,
        files: CheckpointFiles | None = None,
        stats: StoreStats | None = None,
        bounds: Bounds = DEFAULT,
    ) -> None:
        self.is_shared = database.is_shared
        interval_s = INTERVAL_S if self.is_shared else 0.0
        self._commits = GroupCommit(database, interval_s, partial(run_all, bounds=bounds))
        self.leases = Leases(database, RUNNING, interval_s)
        self.conversations = ConversationStore(database, self._commits, self.leases)
        self.locks = TenantLocks()
        self.stats = stats or StoreStats()
        self.files = files
        self.streams: set[Callable[[], Awaitable[None]]] = set()
        database.probe = response_table.probe
        self._database = database
        self._retention_s = retention_s
        self._bounds = bounds
        self._adopt_after_s = adopt_after_s
        self._logs: dict[tuple[str, str], ResponseLog] = {}
        self._changed: dict[tuple[str, str], asyncio.Event] = {}
        self._followers = LogFollowers(database, self._changed.get)

    @property
    def is_stuck(self) -> bool:
        """Whether a transaction would delay the exit of the process."""
        return self._database.is_stuck

    @property
    def running_logs(self) -> Sequence["ResponseLog"]:
        """Logs of the responses that this replica owns."""
        return list(self._logs.values())

    async def check(self) -> None:
        """Checks that responses can be stored, before one is generated.

        Raises:
          StoreUnavailableError: The database fails.
        """
        await self._database.check()

    async def keep(
        self, response_id: str, response: bytes, history: bytes, output: ConversationMessage, turn: Turn | None = None
    ) -> bytes:
        """Stores a response that has ended, and adds to its conversation.

        Args:
          response: JSON of the response.
          history: Messages before the response's own, from `pack`.
          output: The response's own message.
          turn: Its ended turn in a conversation; None if it has none.

        Returns:
          JSON of the response that is stored under the id: an earlier one if a line of a batch has run before.

        Raises:
          ApiError: Another response has taken the turn.
        """
        record = ResponseRecord(tenant.get(), response_id, bytes(response), history, pack([output]))
        load = record.load(items=() if turn is None else turn.items)
        put = Addition(record.tenant, partial(response_table.put, record=record, turn=turn))
        stored = await self._commits.write(put, REPLY_S, load)
        self._drop_turn(turn)
        if stored is None:
            assert turn is not None
            raise locked(turn.conversation, "conversation")
        return stored

    def _drop_turn(self, turn: Turn | None) -> None:
        """Notes that a turn has ended in the database."""
        if turn is not None:
            self.leases.drop(turn.lease)

    async def open(self, record: ResponseRecord, job: Job, events: Sequence[bytes]) -> "ResponseLog":
        """Stores a background response before its first token.

        Args:
          record: The response without output.
          job: All that another replica needs to generate it.
          events: First events, which are stored in the same transaction as the response.

        Raises:
          ApiError: The tenant has too many running responses.
          StoreUnavailableError: The store is unavailable or full.
        """
        first = LogEntry(0, 0, len(events), 0, 0, events=b"".join(events) if record.is_streamed else b"")
        insert = partial(self._insert_within_quota, record=record, job=job, entry=first)
        with self.leases.taking(record.tenant, record.id):
            lease = await self._commits.write(insert, REPLY_S, record.load(job.num_bytes + first.num_bytes))
        if isinstance(lease, str):
            raise ApiError(kinds.TOO_MANY_RUNNING, f"{lease}: wait for some of them to end, or cancel them")
        self._drop_turn(job.turn)
        log = ResponseLog(self, lease, record.is_streamed, job.engine)
        log.go_on(LogEnd().after(first))
        return log

    async def hand_over(
        self, record: ResponseRecord, job: Job, entry: LogEntry, task: asyncio.Task[Any]
    ) -> "ResponseLog":
        """Stores a response that another replica will continue.

        Args:
          entry: All of its events and tokens so far.
          task: Task until whose end this replica stays the owner.

        Raises:
          StoreUnavailableError: The database is unavailable, full or too slow.
        """
        insert = partial(response_table.insert, record=record, job=job, owner=self.leases.owner, entry=entry)
        with self.leases.taking(record.tenant, record.id):
            lease = await self._commits.write(insert, _LAST_S, record.load(job.num_bytes + entry.num_bytes))
        self._drop_turn(job.turn)
        self.stats.handovers += 1
        log = ResponseLog(self, lease, is_streamed=True, engine=job.engine)
        log.go_on(LogEnd().after(entry))
        log.is_left = True
        log.hold(task)
        return log

    async def hand_over_streams(self) -> None:
        """Stores the responses of all open streams. Nothing is sent on these streams afterwards."""
        streams = list(self.streams)
        results = await asyncio.gather(*(hand_over() for hand_over in streams), return_exceptions=True)
        if failures := [result for result in results if isinstance(result, Exception)]:
            text = "%d of %d streams cannot be continued by other replicas: %s"
            _logger.warning(text, len(failures), len(streams), failures[0])

    async def find(self, response_id: str) -> ResponseRecord | None:
        """Returns a response of the current tenant; None if it does not exist."""
        if not RESPONSE_ID.fullmatch(response_id):
            return None
        owner = tenant.get()
        return await self._database.run(lambda each: RESPONSES.find(each, owner, response_id), timeout_s=REPLY_S)

    async def get(self, response_id: str) -> ResponseRecord:
        """Returns a stored response.

        Raises:
          ApiError: 404, the response was never stored, is not finished yet, or was deleted.
        """
        if (found := await self.find(response_id)) is None:
            raise missing("stored response", response_id)
        return found

    async def sizes(self, parts: Collection[StoredPart]) -> Mapping[StoredPart, tuple[int, int]]:
        """Returns the numbers of items and of bytes of those parts of the current tenant that exist.

        The number of items is known of conversations only, and 0 for other parts.
        """
        read = partial(part_table.sizes, tenant=tenant.get(), parts=parts)
        return await self._database.run(read, timeout_s=REPLY_S)

    async def contents(self, parts: Collection[StoredPart]) -> Mapping[StoredPart, Sequence[bytes]]:
        """Returns the contents of those parts that exist: packed messages, or the JSON of each item."""
        read = partial(part_table.contents, tenant=tenant.get(), parts=parts)
        return await self._database.run(read, timeout_s=REPLY_S)

    async def seize(self, response_id: str) -> "tuple[ResponseLog, int] | None":
        """Takes a running response from its owner, in order to end it within the current task.

        Returns:
          The response's log and the number of its next event, or None if it isn't running.
        """
        seize = partial(response_table.seize, owner=self.leases.owner, tenant=tenant.get(), response_id=response_id)
        with self.leases.taking(tenant.get(), response_id):
            adoption = await self._commits.write(seize, REPLY_S)
        if adoption is None:
            return None
        log, task = self.log_of(adoption), asyncio.current_task()
        assert task is not None
        log.hold(task)
        return log, log.num_events

    async def delete(self, response_id: str) -> None:
        """Deletes a response.

        Raises:
          ApiError: No response has this id.
        """
        await self.get(response_id)
        owner = tenant.get()
        await self._commits.write(lambda each: response_table.delete(each, owner, response_id), REPLY_S)

    async def follow(self, response_id: str, number: int, pause_s: float) -> AsyncGenerator[bytes | None]:
        """Returns the event of this number and all later ones, and None whenever the next takes longer than `pause_s`.

        Raises:
          ApiError: The event is no longer kept, or the event before it does not exist yet.
        """
        key = tenant.get(), response_id
        if number or not self.is_shared:
            await self._followers.check(key, number)
        return self._followers.follow(key, number, pause_s)

    async def claim(self, model: str, places: Places, engine: str | None) -> Sequence[Adoption]:
        """Adopts responses without a live owner.

        Args:
          model: Identity of the served model.
          places: Room for responses.
          engine: Identity of the engine; None if it cannot continue responses exactly.
        """
        claimant = Claimant(self.leases.owner, model, engine, self._adopt_after_s)
        adoptions = await self.leases.write(lambda each: response_table.claim(each, claimant, places))
        self.stats.adoptions += len(adoptions)
        return adoptions

    async def deltas(self, adoption: Adoption) -> list[bytes]:
        """Returns the packed deltas in the log of an adopted response. Its former owners cannot write to it any more.

        Raises:
          StoreUnavailableError: The database is unavailable.
        """
        found: list[bytes] = []
        key, place = (adoption.lease.tenant, adoption.lease.id), 0
        while place < adoption.log.num_entries:
            read = partial(event_table.deltas, tenant=key[0], response_id=key[1], place=place)
            some, after = await self._database.run(read)
            if after == place:
                break  # the response was deleted
            found += some
            place = after
        return found

    def log_of(self, adoption: Adoption) -> "ResponseLog":
        """Returns the log of an adopted response, after its last entry. No task holds it yet."""
        log = ResponseLog(self, adoption.lease, adoption.record.is_streamed, adoption.engine)
        log.go_on(adoption.log)
        log.checkpoint = adoption.checkpoint
        return log

    def note_lost(self, lease: Lease) -> bool:
        """Notes that this replica no longer owns a response; returns whether it generates it in the background."""
        if (log := self._logs.get((lease.tenant, lease.id))) is None or log.lease != lease:
            return False
        log.is_lost = True
        return True

    async def note_running(self) -> None:
        """Counts running responses for metrics, and logs when the number of abandoned ones has grown."""
        self.stats.unattended = self.leases.num_strays
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
        """Deletes responses and conversations beyond the limits, and checkpoint files that no response refers to."""
        for find, delete in (
            (response_table.expired, response_table.delete),
            (CONVERSATIONS.expired, CONVERSATIONS.hide),
        ):
            read = partial(find, bounds=self._bounds, max_age_s=self._retention_s)
            for names in batched(await self._database.run(read), _MAX_DELETED):
                await self._commits.write(partial(_delete_all, delete, names), REPLY_S, WriteLoad(len(names)))
        while await self._commits.write(CONVERSATIONS.remove_hidden, REPLY_S, WriteLoad(MAX_REMOVED)):
            pass
        if self.files is not None:
            await self.files.sweep(await self._database.run(response_table.checkpoint_names, timeout_s=REPLY_S))

    async def close(self) -> None:
        """Leaves this replica's running responses to others, and closes the database."""
        try:
            if self.leases.held:
                await self.leases.release(list(self.leases.held))
        except UnavailableError as error:
            _logger.warning("running responses can be adopted in %g s only: %s", LEASE_S, error)
        self._database.close()
        if self.files is not None:
            self.files.close()

    async def write_entry(
        self, log: "ResponseLog", entry: LogEntry, final: tuple[bytes, bytes, Sequence[Item]] | None = None
    ) -> None:
        """Commits an entry of a log, and with the last entry the final response, its packed message and its items.

        Raises:
          FencedError: Another replica owns the response, or it was deleted.
          UnavailableError: The database was unavailable for too long.
        """
        lease, log_bytes = log.lease, log.num_bytes
        try:
            if final is None:
                engine = log.engine if entry.first_token + entry.num_tokens else None
                append, load = Append(lease, entry, log_bytes, engine), WriteLoad(1, entry.num_bytes)
                await self._commits.write(append, _OWNER_S, load, waits_for_room=True)
            else:
                response, output, items = final
                end = partial(response_table.end, lease=lease, entry=entry, log_bytes=log_bytes)
                last = Addition(lease.tenant, partial(end, response=response, output=output, items=items))
                load = load_of(items).plus(WriteLoad(1, entry.num_bytes + len(response) + len(output)))
                await self._commits.write(last, _OWNER_S, load, waits_for_room=True)
        except FencedError:
            self.stats.refusals += 1
            log.is_lost = True
            self._forget(log)
            raise
        except UnavailableError:
            self._forget(log)
            raise
        if not self.is_shared:
            share = self._bounds.max_bytes // max(len(self._logs), 1)
            if first := log.drop(entry, max(min(share, _MAX_KEPT), _MIN_KEPT)):
                await self._commits.write(lambda each: event_table.drop(each, *log.key, first), _OWNER_S)
        log.num_committed = entry.first_token + entry.num_tokens
        self._wake(log)
        if final is not None:
            self._forget(log)
            await self._replace_checkpoint(log, None)

    async def set_checkpoint(self, log: "ResponseLog", checkpoint: CheckpointReference) -> None:
        """Stores the reference to a checkpoint's file once the log has all of its tokens, and deletes the previous
        file.

        Raises:
          FencedError: The response has ended, or another replica owns it.
          UnavailableError: The database is unavailable.
        """
        while log.num_committed < checkpoint.num_tokens:
            if self._logs.get(log.key) is not log or log.is_left:
                raise FencedError(f"{log.lease.id} has ended, or was left to others")
            await self._changed[log.key].wait()
        lease = log.lease
        await self._commits.write(lambda each: response_table.set_checkpoint(each, lease, checkpoint), REPLY_S)
        await self._replace_checkpoint(log, checkpoint)

    async def checkpoint_of(self, adoption: Adoption, formats: RequestSnapshotFormat) -> RequestSnapshot | None:
        """Returns the latest checkpoint of an adopted response; None if it has no usable one."""
        if self.files is None or adoption.checkpoint is None:
            return None
        return await self.files.read(adoption.checkpoint.name, formats)

    async def _replace_checkpoint(self, log: "ResponseLog", checkpoint: CheckpointReference | None) -> None:
        earlier, log.checkpoint = log.checkpoint, checkpoint
        if self.files is not None and earlier is not None and earlier != checkpoint:
            await self.files.delete(earlier.name)

    async def give_up(self, log: "ResponseLog", *, is_death: bool) -> None:
        """Ends the lease of a log, so that others may adopt its response immediately."""
        self._forget(log)
        await self.leases.release([log.lease], is_death=is_death)

    def hold(self, log: "ResponseLog", task: asyncio.Task[Any]) -> None:
        """Renews the lease of a log until a task has ended for any reason. A lease that no task holds is never renewed.

        A later task replaces an earlier one, whose end then has no effect.
        """
        self._logs[log.key] = log
        self._changed.setdefault(log.key, asyncio.Event())
        self.leases.hold(log.lease, task)
        task.add_done_callback(lambda _: None if log.lease in self.leases.held else self._forget(log))

    def _insert_within_quota(
        self, transaction: Transaction, record: ResponseRecord, job: Job, entry: LogEntry
    ) -> Lease | str:
        """Stores a response that this replica begins to generate, or returns the limit that its tenant has reached."""
        most = self._bounds.max_bytes
        count, num_bytes = response_table.running_of(transaction, record.tenant, MAX_RUNNING)
        if count >= MAX_RUNNING:
            return f"this API key has {MAX_RUNNING} background responses running, which is the limit"
        if num_bytes + record.num_bytes + job.num_bytes > most:
            size = f"{most / 2**20:.0f} MiB"
            return f"this API key's running background responses and their events take {size}, which is the limit"
        return response_table.insert(transaction, record, job, self.leases.owner, entry)

    def _wake(self, log: "ResponseLog") -> None:
        if (changed := self._changed.get(log.key)) is not None:
            self._changed[log.key] = asyncio.Event()
            changed.set()

    def _forget(self, log: "ResponseLog") -> None:
        if self._logs.get(log.key) is log:
            del self._logs[log.key]
            self.leases.drop(log.lease)
            self._changed.pop(log.key).set()


class ResponseLog:
    """Log of a response that this replica owns.

    Attributes:
      lease: Lease against which all writes are checked.
      key: Tenant and response id.
      is_streamed: Whether it keeps the events of a stream.
      engine: Engine that decodes all tokens, so that a checkpoint is useful; None if another one decoded some.
      num_committed: Number of tokens in the database.
      checkpoint: Latest checkpoint in the database; None if there is none.
      is_left: Whether only other replicas append to the log.
      is_lost: Whether this replica is known to be no longer the owner.
    """

    def __init__(self, store: ResponseStore, lease: Lease, is_streamed: bool, engine: str | None) -> None:
        self.lease = lease
        self.key = lease.tenant, lease.id
        self.engine = engine
        self.num_committed = 0
        self.checkpoint: CheckpointReference | None = None
        self.is_left = self.is_lost = False
        self._store = store
        self.is_streamed = is_streamed
        self._end = LogEnd()
        self._kept: deque[tuple[int, int]] = deque()  # numbers and bytes of the entries in memory

    @property
    def num_events(self) -> int:
        """Number of events so far."""
        return self._end.num_events

    @property
    def num_bytes(self) -> int:
        """Bytes of the log so far."""
        return self._end.num_bytes

    def hold(self, task: asyncio.Task[Any]) -> None:
        """Keeps other replicas from adopting the response until a task has ended for any reason. Only this does so."""
        self._store.hold(self, task)

    def go_on(self, end: LogEnd) -> None:
        """Continues after the entries of earlier owners."""
        self._end = end
        self.num_committed = end.num_tokens

    async def append(self, events: Sequence[bytes], delta: Delta | None = None) -> None:
        """Appends events, and the delta from which they were built. After this returns, the events may be sent.

        Raises:
          FencedError: The response was adopted, ended or deleted by another replica.
          StoreUnavailableError: The store was unavailable for too long.
        """
        if self._store.is_shared or self.is_streamed:
            await self._store.write_entry(self, self._next(events, delta))

    async def end(
        self,
        events: Sequence[bytes],
        response: bytes,
        output: ConversationMessage,
        status: str,
        items: Sequence[Item] = (),
    ) -> None:
        """Appends the last events, stores the final response and its message, and adds to its conversation.

        Args:
          status: Status of the response.
          items: Items that its output adds to its conversation; none if it has failed or has no conversation.

        Raises:
          FencedError, StoreUnavailableError: See `append`.
        """
        await self._store.write_entry(self, self._next(events, None), (bytes(response), pack([output]), items))
        self._store.stats.ended[status] += 1

    async def is_continued(self) -> bool:
        """Returns whether another replica continues the response or has ended it, other than by a cancellation."""
        found = await self._store.find(self.lease.id) if self.is_lost else None
        return found is not None and admission.get().parse_stored(found.response)["status"] != "cancelled"

    async def release(self, *, is_death: bool = False) -> bool:
        """Leaves the response to other replicas. Returns whether there may be other replicas.

        Args:
          is_death: Whether the response may have ended this replica's work on it, which then counts as a death.
        """
        if self._store.is_shared:
            await self._store.give_up(self, is_death=is_death)
        return self._store.is_shared

    def drop(self, entry: LogEntry, max_bytes: int) -> int:
        """Forgets the oldest entries beyond a number of bytes, and returns the number of the oldest that is left.

        Args:
          entry: The newest entry, which is never forgotten.

        Returns:
          0 if none was forgotten.
        """
        self._kept.append((entry.number, entry.num_bytes))
        num_bytes, first = self._end.num_bytes, 0
        while num_bytes > max_bytes and len(self._kept) > 1:
            num_bytes -= self._kept.popleft()[1]
            first = self._kept[0][0]
        self._end = replace(self._end, num_bytes=num_bytes)
        return first

    def _next(self, events: Sequence[bytes], delta: Delta | None) -> LogEntry:
        end = self._end
        entry = LogEntry(
            end.num_entries,
            end.num_events,
            len(events),
            end.num_tokens,
            0 if delta is None else len(delta.token_ids),
            pack_delta(delta) if delta is not None and self._store.is_shared else b"",
            b"".join(events) if self.is_streamed else b"",
        )
        self._end = end.after(entry)
        return entry


def _delete_all(
    delete: Callable[[Transaction, str, str], object], names: Sequence[Name], transaction: Transaction
) -> None:
    for name in names:
        delete(transaction, *name)
