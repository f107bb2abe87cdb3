"""Statements on stored responses, as functions of a transaction.

A running response is also a unit of shared work, whose row names its owner. Each write of an owner changes that row in
the same transaction, and before any other row, so that transactions lock rows in one order. `engine` of the unit names
the engine that has decoded all tokens of the log one after the other; other engines read them as a prompt.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from pydantic import TypeAdapter

from ...database.database import Transaction
from ...database.group_commit import Work, run_each
from ...database.schema import Tables, Upgrade
from ...errors import kinds
from ...errors.request_errors import ApiError
from ...generation.admission import stored_json
from ...storage import claims
from ...storage.claims import Claimant, Places
from ...storage.objects import MAX_FOUND, Bounds, Name, ObjectTable
from ...storage.work import IS_WAITING, Claim, Lease, check
from ...text.chat_format import ConversationMessage
from . import conversations, event_log
from .conversations import CONVERSATIONS, ITEMS, RESPONSE, RUNNING, Addition, Item, Turn, unpack_items
from .event_log import BEFORE_FIRST, EVENTS, LogEntry

MAX_RUNNING: Final = 1000
"""Limit on each tenant's running responses in the database. Beyond it, or beyond `Bounds.max_bytes` of these
responses and their logs, the tenant cannot start background responses."""

_PROBE_BYTES: Final = 4096
"""Bytes of a response that is stored as a probe: about as many as a short response has."""


@dataclass(frozen=True, slots=True)
class ResponseRecord:
    """A stored response. The last fields are those of a running one, in a form from which a replica can generate it.

    Attributes:
      response: JSON of the response as clients receive it.
      history: JSON of the messages before the response's own.
      output: JSON of the response's own message in a list, which is empty until the response has ended.
      is_background: Whether the response is or was generated in the background.
      is_streamed: Whether the log keeps the events of its stream.
      is_running: Whether the response has not ended.
      request: JSON of the request, without its input.
      prompt: Token ids of the prompt, as little-endian int32.
      conversation: Id of the conversation that the response adds to, if any.
      input_items: Items that its input adds there, from `pack_items`.
      checkpoint: Name of the latest saved state, if any.
    """

    tenant: str
    id: str
    response: bytes
    history: bytes
    output: bytes
    is_background: bool = False
    is_streamed: bool = False
    is_running: bool = False
    request: bytes | None = None
    prompt: bytes | None = None
    conversation: str | None = None
    input_items: bytes | None = None
    checkpoint: str | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes that the response takes, without its log."""
        parts = self.response, self.history, self.output, self.request, self.prompt, self.input_items
        return sum(len(part or b"") for part in parts)


@dataclass(frozen=True, slots=True)
class Job:
    """A response that a replica begins to generate.

    Attributes:
      model: Identity of the model; only replicas that serve the same model may adopt the response.
      engine: Identity of the engine that generates it. Only the same engine repeats its tokens bit for bit. None if the
        engine has no checkpoints, or the prompt continues an imported state.
      turn: Its turn in a conversation; None if it has none.
    """

    record: ResponseRecord
    model: str
    engine: str | None = None
    turn: Turn | None = None


@dataclass(frozen=True, slots=True)
class Adoption:
    """A running response that a replica has adopted.

    Attributes:
      last: Last entry of its log, without content.
      engine: Engine of the replica if an engine like it has decoded all tokens of the log, one after the other, so that
        it continues them exactly; None if not.
    """

    claim: Claim
    record: ResponseRecord
    last: LogEntry
    engine: str | None


RESPONSE_ID: Final = re.compile("resp_[0-9a-f]{32}")

_MESSAGES: Final = TypeAdapter(list[ConversationMessage])

RESPONSES: Final = ObjectTable(
    "roost_responses",
    ResponseRecord,
    bounded="is_running = 0",
    extra={"created": float, "num_bytes": int},
    indexes={
        "running": "(tenant, num_bytes) WHERE is_running = 1",
        "ended": "(tenant, created, num_bytes) WHERE is_running = 0",
        "old": "(created) WHERE is_running = 0",
    },
)

BOUNDED: Final[Sequence[ObjectTable[Any]]] = (RESPONSES, CONVERSATIONS)
"""Tables of objects to which `Bounds` apply."""

_TABLES: Final = (RESPONSES, RUNNING, EVENTS, CONVERSATIONS, ITEMS)

TABLES: Final = Tables("responses", (Upgrade([text for each in _TABLES for text in each.statements], 7),), first=7)
"""Tables of responses, their logs and conversations."""

_OWN: Final = "tenant = ? AND id = ?"
_GENERATED: Final = f"number = {RESPONSE}"
"""Condition of running responses among the units of work."""


def put(transaction: Transaction, record: ResponseRecord, turn: Turn | None = None) -> bytes:
    """Stores a response that has ended and was not generated in the background, unless its id is stored already.

    Args:
      turn: Its turn in a conversation, which ends; None if it has none.

    Returns:
      JSON of the response that is stored.

    Raises:
      ApiError: Another response has taken the turn.
    """
    if turn is not None:
        conversations.end_turn(transaction, turn)
    if _insert(transaction, record):
        return record.response
    query = "SELECT response FROM roost_responses WHERE tenant = ? AND id = ?"
    ((response,),) = transaction.rows(query, record.tenant, record.id)
    return bytes(response)


def insert(
    transaction: Transaction, job: Job, owner: str, entry: LogEntry = BEFORE_FIRST, bounds: Bounds | None = None
) -> Lease:
    """Stores a response that its owner begins to generate, and returns the owner's lease.

    Args:
      entry: First entry of its log, if its owner has already generated a part of it.
      bounds: Limits on the bytes of the tenant's running responses; None sets no limit.

    Raises:
      ApiError: The tenant has reached a limit.
    """
    record = job.record
    if bounds is not None:
        count, num_bytes = running_of(transaction, record.tenant)
        if count >= MAX_RUNNING or num_bytes + record.num_bytes > bounds.max_bytes:
            limit = f"{MAX_RUNNING} running background responses and {bounds.max_bytes / 2**20:.0f} MiB of them"
            message = f"this API key has reached its limit of {limit}: wait for some to end, or cancel some"
            raise ApiError(kinds.TOO_MANY_RUNNING, message)
    lease = Lease(record.tenant, record.id, RESPONSE, 1)
    if _insert(transaction, record):
        engine = job.engine if entry.num_tokens else None
        RUNNING.add(transaction, owner, lease.name, job.model, entry.num_bytes, engine)
        if job.turn is not None:  # from now on, the response itself locks its conversation
            RUNNING.end(transaction, [job.turn.lease])
    if entry is not BEFORE_FIRST:
        event_log.append(transaction, [(lease, entry)])
    return lease


def probe(transaction: Transaction) -> None:
    """Stores a response with a log, and deletes both, to find out whether the tables can be written."""
    record = ResponseRecord("", f"probe_{uuid4().hex}", bytes(_PROBE_BYTES), b"", b"")
    insert(transaction, Job(record, ""), "", BEFORE_FIRST.followed_by([]))
    delete(transaction, record.tenant, record.id)


def _insert(transaction: Transaction, record: ResponseRecord) -> int:
    """Stores a response, and returns the number of new rows: 0 if its id is stored already."""
    return RESPONSES.insert(transaction, record, {"num_bytes": record.num_bytes}, created="{now}")


@dataclass(frozen=True, slots=True)
class Append:
    """A write of an entry that an owner appends to its log.

    Attributes:
      num_bytes: Bytes of the log with this entry.
      engine: Engine that has decoded all of its tokens; None if there are none, or several engines did so.
    """

    lease: Lease
    entry: LogEntry
    num_bytes: int
    engine: str | None = None

    def __call__(self, transaction: Transaction) -> None:
        """Appends the entry.

        Raises:
          FencedError: Another replica owns the log.
        """
        check(self.lease, append_all(transaction, [self]))


def append_all(transaction: Transaction, appends: Sequence[Append]) -> set[Lease]:
    """Appends to logs and extends their leases, in two statements. Repeating it changes nothing.

    The store's thread waits for the interpreter lock after each statement, since the engine's thread holds it most of
    the time.

    Returns:
      The leases whose holders are still the owners. Nothing is appended to the other logs.
    """
    held = RUNNING.extend(transaction, {each.lease: (each.num_bytes, each.engine) for each in appends})
    event_log.append(transaction, [(each.lease, each.entry) for each in appends if each.lease in held])
    return held


def end(
    transaction: Transaction,
    lease: Lease,
    entry: LogEntry,
    response: bytes,
    output: bytes,
    log_bytes: int,
    items: Sequence[Item] = (),
) -> None:
    """Appends the last entry and stores the final response, which then has no owner. A stream's log is kept.

    Args:
      log_bytes: Bytes of the log with this entry.
      items: Items that the response's output adds to its conversation; none if it has failed or has no conversation.

    Raises:
      FencedError: The lease's holder is no longer the owner.
    """
    check(lease, RUNNING.end(transaction, [lease]))
    ((is_streamed, conversation, input_items),) = transaction.rows(
        f"""
        UPDATE roost_responses SET response = ?, output = ?, is_running = 0, request = NULL, prompt = NULL,
            checkpoint = NULL, num_bytes = length(history) + ? + CASE WHEN is_streamed = 1 THEN ? ELSE 0 END
        WHERE {_OWN}
        RETURNING is_streamed, conversation, input_items
        """,
        response,
        output,
        len(response) + len(output),
        log_bytes,
        lease.tenant,
        lease.id,
    )
    if is_streamed:
        event_log.append(transaction, [(lease, entry)])
    else:
        event_log.delete(transaction, lease.name)
    if conversation is not None:
        turn = Turn(conversation, lease, unpack_items(bytes(input_items))).ended(items)
        with suppress(ApiError):  # another response has taken the turn
            conversations.end_turn(transaction, turn)
        drop_items = f"UPDATE roost_responses SET input_items = NULL WHERE {_OWN}"
        transaction.execute(drop_items, lease.tenant, lease.id)


def end_early(
    transaction: Transaction,
    tenant: str,
    response_id: str,
    response: bytes,
    output: bytes,
    event: Callable[[int], bytes],
) -> bool:
    """Ends a running response for its owner, whose next write is refused; returns whether it was running.

    Args:
      event: Returns the last event, given its number.
    """
    claim = RUNNING.seize(transaction, "", tenant, response_id)
    if claim is None:
        return False
    last = event_log.last_entry(transaction, (tenant, response_id))
    entry = last.followed_by([event(last.next_event)])
    end(transaction, claim.lease, entry, response, output, claim.num_bytes + entry.num_bytes)
    return True


def set_checkpoint(transaction: Transaction, lease: Lease, checkpoint: str) -> None:
    """Stores the name of a saved state, and replaces an earlier name.

    Raises:
      FencedError: The lease's holder is no longer the owner.
    """
    check(lease, RUNNING.held(transaction, lease))
    update = f"UPDATE roost_responses SET checkpoint = ? WHERE {_OWN}"
    transaction.execute(update, checkpoint, lease.tenant, lease.id)


def checkpoint_names(transaction: Transaction) -> list[str]:
    """Returns the names of all state files that running responses refer to."""
    rows = transaction.rows("SELECT checkpoint FROM roost_responses WHERE is_running = 1 AND checkpoint IS NOT NULL")
    return [name for (name,) in rows]


def delete(transaction: Transaction, tenant: str, response_id: str) -> None:
    """Deletes a response and its log. An owner's next write is refused."""
    RUNNING.drop(transaction, tenant, response_id)
    remove(transaction, tenant, response_id)


def remove(transaction: Transaction, tenant: str, response_id: str) -> None:
    """Deletes a response that has ended, and its log."""
    event_log.delete(transaction, (tenant, response_id))
    transaction.execute(f"DELETE FROM roost_responses WHERE {_OWN}", tenant, response_id)


def claim(transaction: Transaction, claimant: Claimant, places: Places) -> list[Adoption]:
    """Makes a replica the owner of responses that wait for one; see `claims.claim`."""
    found = claims.claim(transaction, RUNNING, claimant, places)
    if found:  # fails if logs cannot be written, and then nothing is adopted
        transaction.execute("INSERT INTO roost_events SELECT * FROM roost_events WHERE tenant = '' AND 1 = 0")
    return [_adoption(transaction, each, claimant.engine) for each in found]


def _adoption(transaction: Transaction, claim: Claim, engine: str | None) -> Adoption:
    """Returns the data needed to continue a response."""
    record = RESPONSES.find(transaction, *claim.lease.name)
    assert record is not None
    last = event_log.last_entry(transaction, claim.lease.name)
    return Adoption(claim, record, last, engine if not last.next_token or claim.engine == engine else None)


def running_of(transaction: Transaction, tenant: str) -> tuple[int, int]:
    """Returns the number of a tenant's running responses, up to `MAX_RUNNING`, and the bytes of them and their logs."""
    found = f"SELECT num_bytes FROM {{}} tenant = ? LIMIT {MAX_RUNNING}"
    bytes_of = f"SELECT count(*), coalesce(sum(num_bytes), 0) FROM ({found}) AS found"
    ((count, log_bytes),) = transaction.rows(bytes_of.format(f"{RUNNING.name} WHERE {_GENERATED} AND"), tenant)
    ((_, own_bytes),) = transaction.rows(bytes_of.format(f"{RESPONSES.name} WHERE is_running = 1 AND"), tenant)
    return int(count), int(own_bytes) + int(log_bytes)


def count_running(transaction: Transaction) -> tuple[int, int]:
    """Returns the numbers of running responses of all replicas: all, and those without an owner."""
    orphaned = RUNNING.count(transaction, f"{_GENERATED} AND {IS_WAITING}", 0.0)
    return RUNNING.count(transaction, _GENERATED), orphaned


def expired(transaction: Transaction, bounds: Bounds, max_age_s: float) -> list[Name]:
    """Returns responses to delete: the oldest ended ones, and running ones that have had no owner for too long.

    Args:
      max_age_s: Age in seconds after which responses are deleted.
    """
    abandoned = f"SELECT tenant, id FROM {RUNNING.name} WHERE {IS_WAITING} ORDER BY lease_until LIMIT {MAX_FOUND}"
    found = dict.fromkeys(RESPONSES.expired(transaction, bounds, max_age_s))
    found |= dict.fromkeys(transaction.rows(abandoned, max_age_s))
    return list(found)[:MAX_FOUND]


def make_room(transaction: Transaction, tenant: str, bounds: Bounds, tables: Sequence[ObjectTable[Any]]) -> None:
    """Deletes the oldest objects of a tenant that are beyond its limits.

    Call it at the end of a transaction that has added some. It waits for other replicas' transactions that have.

    Args:
      tables: Tables of `BOUNDED` to which the transaction has added.
    """
    transaction.execute("{lock_name}", tenant)
    for table in tables:
        drop = remove if table is RESPONSES else table.hide
        for id in table.unlocked(transaction, tenant, table.beyond(transaction, tenant, bounds)):
            drop(transaction, tenant, id)


def run_all(transaction: Transaction, works: Sequence[Work[Any]], bounds: Bounds) -> list[Any]:
    """Returns the result of each write, or the error with which it was refused. Appends run first.

    At the end, room is made once for all additions of a tenant.
    """
    appends = [work for work in works if isinstance(work, Append)]
    held = append_all(transaction, appends) if appends else set[Lease]()

    def run(work: Work[Any]) -> Work[Any]:
        return (lambda _: check(work.lease, held)) if isinstance(work, Append) else work

    results = run_each(transaction, [run(work) for work in works])
    added = {(work.tenant, table) for work in works if isinstance(work, Addition) for table in work.tables}
    for owner in sorted({owner for owner, _ in added}):
        make_room(transaction, owner, bounds, [table for table in BOUNDED if (owner, table) in added])
    if any(table is CONVERSATIONS for _, table in added):
        CONVERSATIONS.remove_hidden(transaction)  # so that hidden rows become no more while others are added
    return results


def pack(messages: Sequence[ConversationMessage]) -> bytes:
    """Returns messages in the encoding in which they are stored."""
    return _MESSAGES.dump_json(list(messages), exclude_defaults=True)


def unpack(packed: bytes) -> list[ConversationMessage]:
    """Returns the messages of `pack`."""
    return _MESSAGES.validate_python(stored_json(packed))


def num_messages(packed: bytes) -> int:
    """Returns the number of messages of `pack`, without unpacking them. Quotation marks in texts are escaped."""
    return packed.count(b'"role":')
