"""Stored responses, which clients may fetch or continue. Each tenant sees only its own.

A database that replicas share keeps all data that they need to continue a running response. A database in memory keeps
only data that clients may fetch or follow.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import batched
from typing import Any, Final

from ...database.database import Database, Transaction
from ...database.dialects import LEASE_S
from ...database.errors import FencedError
from ...database.errors import StoreUnavailableError as UnavailableError
from ...database.group_commit import GroupCommit, Work, WriteLoad
from ...generation.admission import admission, stored_json
from ...generation.delta import Delta
from ...http.responses import to_json
from ...storage import objects
from ...storage.objects import MAX_REMOVED, Bounds, Name, TenantObjects
from ...storage.work import Lease
from ...storage.worker import Leases
from ...tenants import TenantLocks
from ...text.chat_format import ConversationMessage
from . import event_log, response_table
from .checkpoint_files import CheckpointFiles
from .collector import StoreStats
from .conversations import CONVERSATIONS, RUNNING, Addition, ConversationStore, Turn, load_of
from .event_log import LogEntry, LogFollowers, pack_delta
from .input_items import output_items
from .response_table import RESPONSE_ID, RESPONSES, Append, Job, ResponseRecord, pack, run_all

_MAX_KEPT: Final = 4 * 2**20
_MIN_KEPT: Final = 64 * 2**10
"""Bytes of a running response's events that memory keeps, at most and at least. The oldest are dropped."""

_MAX_DELETED: Final = 20
"""Number of responses that are deleted in one transaction: each may have a long log."""

_LAST_S: Final = 1.0
"""Seconds for the last writes of a replica that is shutting down."""

_OWNER_S: Final = 2 * LEASE_S
"""Seconds for which an owner tries to write. Its lease has ended by then, so others may continue the response."""

_logger = logging.getLogger(__name__)


class ResponseStore(TenantObjects[ResponseRecord]):
    """Keeps responses and conversations in a database.

    Args:
      database: Database with the store's tables.
      retention_s: Age in seconds after which responses are deleted.
      bounds: Limits on the ended responses, with their logs, and on the conversations of each tenant.
      adopt_after_s: Seconds for which a response without an owner is reserved for replicas that can continue it
        exactly.

    Attributes:
      conversations: Conversations in the same database.
      is_shared: Whether other replicas may use the database.
      leases: Leases of this replica on running responses, and on turns in conversations.
      locks: Locks under which a tenant's long expansions are made, one at a time.
      stats: Counts for metrics.
      files: Files of checkpoints; None if no checkpoints are taken.
      streams: For each open foreground stream, a function that stores what another replica needs to continue it.
      tasks: Tasks that generate responses in the background, by tenant and id.
      logs: Logs of the responses that this replica owns, by tenant and id.
      followers: Followers of logs, whichever replica writes them.
      adopt_after_s, bounds: See the arguments.
    """

    def __init__(
        self,
        database: Database,
        retention_s: float,
        adopt_after_s: float = 60.0,
        bounds: Bounds | None = None,
    ) -> None:
        self.bounds = bounds or Bounds()
        self.commits = GroupCommit(database, run_all=partial(run_all, bounds=self.bounds))
        super().__init__(RESPONSES, RESPONSE_ID, "stored response", database, self.commits)
        self.is_shared = database.is_shared
        self.leases = Leases(database, RUNNING)
        self.conversations = ConversationStore(database, self.commits, self.leases)
        self.locks = TenantLocks()
        self.stats = StoreStats()
        self.files: CheckpointFiles | None = None
        self.streams: set[Callable[[], Awaitable[None]]] = set()
        self.tasks: dict[Name, asyncio.Task[None]] = {}
        self.logs: dict[Name, ResponseLog] = {}
        database.probe = response_table.probe
        self._retention_s = retention_s
        self.adopt_after_s = adopt_after_s
        self.followers = LogFollowers(database, self._changed)

    def _changed(self, name: Name) -> asyncio.Event:
        """Returns the event that the next commit to a log sets, which never happens on a replica without the log."""
        return self.logs[name].changed if name in self.logs else asyncio.Event()

    async def keep(self, record: ResponseRecord, turn: Turn | None = None) -> bytes:
        """Stores a response that has ended, and adds to its conversation.

        Args:
          record: The response.
          turn: Its ended turn in a conversation; None if it has none.

        Returns:
          JSON of the response that is stored under the id: an earlier one if a line of a batch has run before.

        Raises:
          ApiError: Another response has taken the turn.
        """
        load = load_of(() if turn is None else turn.items).plus(WriteLoad(1, record.num_bytes))
        tables = (RESPONSES,) if turn is None else response_table.BOUNDED
        put = Addition(record.tenant, tables, partial(response_table.put, record=record, turn=turn))
        stored = await self.commit(put, load)
        self.conversations.note_end(turn)
        return stored

    async def open(self, job: Job, entry: LogEntry, *, is_left: bool = False) -> "ResponseLog":
        """Stores an unfinished response. The caller must hold its log.

        Args:
          job: The response without output.
          entry: Events and tokens so far, which are stored in the same transaction as the response.
          is_left: Whether another replica will continue it, and this one is shutting down.

        Raises:
          ApiError: The tenant has too many running responses.
          StoreUnavailableError: The store is unavailable, full or too slow.
        """
        owner, record = self.leases.owner, job.record
        load = WriteLoad(2, record.num_bytes + entry.num_bytes)
        timeout_s, bounds = (_LAST_S, None) if is_left else (objects.REPLY_S, self.bounds)
        with self.leases.taking(record.tenant, record.id):
            lease = await self.commits.write(
                lambda each: response_table.insert(each, job, owner, entry, bounds), timeout_s, load
            )
        self.conversations.note_end(job.turn)
        self.stats.handovers += is_left
        return ResponseLog(self, lease, record.is_streamed, job.engine, entry, entry.num_bytes, is_left=is_left)

    async def hand_over_streams(self) -> None:
        """Stores the responses of all open streams. Nothing is sent on these streams afterwards."""
        streams = list(self.streams)
        results = await asyncio.gather(*(hand_over() for hand_over in streams), return_exceptions=True)
        if failures := [result for result in results if isinstance(result, Exception)]:
            text = "%d of %d streams cannot be continued by other replicas: %s"
            _logger.warning(text, len(failures), len(streams), failures[0])

    async def expire(self) -> None:
        """Deletes responses and conversations beyond the limits, and checkpoint files that no response refers to."""
        for find, delete in (
            (response_table.expired, response_table.delete),
            (CONVERSATIONS.expired, CONVERSATIONS.hide),
        ):
            read = partial(find, bounds=self.bounds, max_age_s=self._retention_s)
            for names in batched(await self.database.run(read), _MAX_DELETED):
                await self.commit(partial(_delete_all, delete, names), WriteLoad(len(names)))
        while await self.commit(CONVERSATIONS.remove_hidden, WriteLoad(MAX_REMOVED)):
            pass
        if self.files is not None:
            await self.files.sweep(await self.run(response_table.checkpoint_names))

    async def close(self) -> None:
        """Leaves this replica's running responses to others, and closes the database."""
        try:
            if self.leases.held:
                await self.leases.release(list(self.leases.held))
        except UnavailableError as error:
            _logger.warning("running responses can be adopted in %g s only: %s", LEASE_S, error)
        self.database.close()
        if self.files is not None:
            self.files.close()


@dataclass(eq=False, slots=True)
class ResponseLog:
    """Log of a response that this replica owns.

    Attributes:
      lease: Lease against which all writes are checked.
      is_streamed: Whether it keeps the events of a stream.
      engine: Engine that decodes all tokens, so that a checkpoint is useful; None if another one decoded some.
      last: Last entry so far.
      num_bytes: Bytes of all entries.
      checkpoint: Name of the latest checkpoint in the database; None if there is none.
      is_left: Whether only other replicas append to the log.
      is_lost: Whether this replica is known to be no longer the owner.
      checkpointed_at: Time of its latest checkpoint, or when this replica began to own it.
      num_committed: Number of tokens in the database.
      changed: Event that the next commit, or the end of the log, sets.
    """

    _store: ResponseStore
    lease: Lease
    is_streamed: bool
    engine: str | None
    last: LogEntry
    num_bytes: int
    checkpoint: str | None = None
    is_left: bool = False
    is_lost: bool = field(default=False, init=False)
    checkpointed_at: float = field(default_factory=time.monotonic, init=False)
    num_committed: int = field(init=False)
    changed: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _kept: deque[tuple[int, int]] = field(default_factory=deque, init=False)
    """Numbers and bytes of the entries in memory."""

    def __post_init__(self) -> None:
        self.num_committed = self.last.next_token

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs what generates the response as a task, and returns the task, which holds the log and the admission."""
        tasks, own = self._store.tasks, admission.get()
        task = tasks[self.lease.name] = asyncio.create_task(work)
        own.hold()
        task.add_done_callback(lambda _: own.release())
        task.add_done_callback(lambda _: tasks.pop(self.lease.name, None))
        self.hold(task)
        return task

    def hold(self, task: asyncio.Task[Any]) -> None:
        """Renews the lease until a task has ended for any reason, so that no other replica adopts the response.

        A lease that no task holds is never renewed. A later task replaces an earlier one, whose end then has no effect.
        """
        leases = self._store.leases
        self._store.logs[self.lease.name] = self
        leases.hold(self.lease, task)
        task.add_done_callback(lambda _: None if self.lease in leases.held else self._forget())

    async def append(self, events: Sequence[bytes], delta: Delta | None = None) -> None:
        """Appends events, and the delta from which they were built. After this returns, the events may be sent.

        Raises:
          FencedError: The response was adopted, ended or deleted by another replica.
          StoreUnavailableError: The store was unavailable for too long.
        """
        if self._store.is_shared or self.is_streamed:
            entry = self._next(events, delta)
            engine = self.engine if entry.next_token else None
            append = Append(self.lease, entry, self.num_bytes, engine)
            await self._commit(entry, append, WriteLoad(1, entry.num_bytes))

    async def end(self, events: Sequence[bytes], response: Mapping[str, Any], output: ConversationMessage) -> None:
        """Appends the last events, stores the final response and its message, and adds to its conversation.

        Raises:
          FencedError, StoreUnavailableError: See `append`.
        """
        entry, written, message, items = (
            self._next(events, None),
            to_json(response),
            pack([output]),
            output_items(response),
        )
        arguments = self.lease, entry, written, message, self.num_bytes, items
        end = Addition(self.lease.tenant, response_table.BOUNDED, lambda each: response_table.end(each, *arguments))
        load = load_of(items).plus(WriteLoad(1, entry.num_bytes + len(written) + len(message)))
        await self._commit(entry, end, load)
        self._forget()
        await self._replace_checkpoint(None)
        self._store.stats.ended[response["status"]] += 1

    async def set_checkpoint(self, name: str, num_tokens: int) -> None:
        """Stores the name of a checkpoint's file once the log has all of its tokens, and deletes the previous file.

        Raises:
          FencedError: The response has ended, or another replica owns it.
          UnavailableError: The database is unavailable.
        """
        while self.num_committed < num_tokens:
            if self._store.logs.get(self.lease.name) is not self or self.is_left:
                raise FencedError(f"{self.lease.id} has ended, or was left to others")
            await self.changed.wait()
        await self._store.commit(lambda each: response_table.set_checkpoint(each, self.lease, name))
        await self._replace_checkpoint(name)

    async def is_continued(self) -> bool:
        """Returns whether another replica continues the response or has ended it, other than by a cancellation."""
        found = await self._store.find(self.lease.id) if self.is_lost else None
        return found is not None and stored_json(found.response)["status"] != "cancelled"

    async def release(self, *, is_death: bool = False) -> bool:
        """Leaves the response to other replicas immediately. Returns whether there may be other replicas.

        Args:
          is_death: Whether the response may have ended this replica's work on it, which then counts as a death.
        """
        if self._store.is_shared:
            self._forget()
            await self._store.leases.release([self.lease], is_death=is_death)
        return self._store.is_shared

    def _next(self, events: Sequence[bytes], delta: Delta | None) -> LogEntry:
        packed = pack_delta(delta) if delta is not None and self._store.is_shared else b""
        num_tokens = 0 if delta is None else len(delta.token_ids)
        self.last = self.last.followed_by(events, packed, num_tokens, keeps_events=self.is_streamed)
        self.num_bytes += self.last.num_bytes
        return self.last

    async def _commit(self, entry: LogEntry, write: Work[None], load: WriteLoad) -> None:
        try:
            await self._store.commits.write(write, _OWNER_S, load, waits_for_room=True)
        except (FencedError, UnavailableError) as error:
            self.is_lost = isinstance(error, FencedError)
            self._store.stats.fencing_refusals += self.is_lost
            self._forget()
            raise
        if not self._store.is_shared and (first := self._drop(entry)):
            await self._store.commits.write(lambda each: event_log.drop(each, self.lease.name, first), _OWNER_S)
        self._note_commit(entry.next_token)

    def _drop(self, entry: LogEntry) -> int:
        """Forgets the oldest entries in memory that are too much.

        Args:
          entry: The newest entry, which is never forgotten.

        Returns:
          Number of the oldest entry that is left; 0 if none was forgotten.
        """
        share = self._store.bounds.max_bytes // max(len(self._store.logs), 1)
        max_bytes = max(min(share, _MAX_KEPT), _MIN_KEPT)
        self._kept.append((entry.number, entry.num_bytes))
        first = 0
        while self.num_bytes > max_bytes and len(self._kept) > 1:
            self.num_bytes -= self._kept.popleft()[1]
            first = self._kept[0][0]
        return first

    def _note_commit(self, num_tokens: int) -> None:
        """Wakes all tasks that wait for a change of the log."""
        self.num_committed = num_tokens
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def _forget(self) -> None:
        """Renews the lease no longer: the response has ended, or is left to others."""
        if self._store.logs.get(self.lease.name) is self:
            del self._store.logs[self.lease.name]
            self._store.leases.drop(self.lease)
            self._note_commit(self.num_committed)

    async def _replace_checkpoint(self, name: str | None) -> None:
        earlier, self.checkpoint = self.checkpoint, name
        if self._store.files is not None and earlier not in (None, name):
            await self._store.files.delete(earlier)


def _delete_all(
    delete: Callable[[Transaction, str, str], object], names: Sequence[Name], transaction: Transaction
) -> None:
    for name in names:
        delete(transaction, *name)
