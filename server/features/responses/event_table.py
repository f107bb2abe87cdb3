"""The logs of responses: all statements on them, as functions of a transaction, and the encoding of their deltas."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from ....engine import TokenLogprobs
from ...constraints.tool_calls import CallPiece
from ...database.database import Transaction
from ...generation.admission import stored_json
from ...generation.delta import Delta
from ...storage.objects import Name, Table
from ...storage.work import Lease

MAX_ENTRIES: Final = 256
"""Maximum number of log entries that are read at a time."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """Tokens and events that were committed together.

    Attributes:
      number: Place in the log, from 0.
      first_event: Sequence number of the first event.
      num_events: Number of events.
      first_token: Index of the first generated token.
      num_tokens: Number of generated tokens.
      delta: JSON of the delta that the events were built from; empty without tokens.
      events: Encoded events, one after the other; empty if the response is not streamed.
    """

    number: int
    first_event: int
    num_events: int
    first_token: int
    num_tokens: int
    delta: bytes = b""
    events: bytes = b""

    @property
    def num_bytes(self) -> int:
        """Bytes that the entry takes."""
        return len(self.delta) + len(self.events)


@dataclass(frozen=True, slots=True)
class LogEnd:
    """Counts at the end of a log.

    Attributes:
      num_entries: Number of its next entry.
      num_events: Number of its next event.
      num_tokens: Number of generated tokens.
      num_bytes: Bytes of all entries.
    """

    num_entries: int = 0
    num_events: int = 0
    num_tokens: int = 0
    num_bytes: int = 0

    def entry(
        self, events: Sequence[bytes], delta: bytes = b"", num_tokens: int = 0, *, keeps_events: bool = True
    ) -> LogEntry:
        """Returns the log's next entry.

        Args:
          delta: JSON of the delta that the events were built from; empty without one.
          keeps_events: Whether the response is streamed.
        """
        kept = b"".join(events) if keeps_events else b""
        return LogEntry(self.num_entries, self.num_events, len(events), self.num_tokens, num_tokens, delta, kept)

    def after(self, entry: LogEntry) -> "LogEnd":
        """Returns the log's end after its next entry."""
        return LogEnd(
            entry.number + 1,
            entry.first_event + entry.num_events,
            entry.first_token + entry.num_tokens,
            self.num_bytes + entry.num_bytes,
        )


EVENTS: Final = Table("roost_events", LogEntry, key=("tenant", "id", "number"), under={"tenant": str, "id": str})

_PACKED: Final = ("text", "calls", "token_ids", "logprobs", "num_cached", "num_sent")
"""Fields of a delta that a log keeps."""

_LOG: Final = "tenant = ? AND id = ?"


def append(transaction: Transaction, appends: Sequence[tuple[Lease, LogEntry]]) -> None:
    """Appends entries whose leases are held. Repeating it changes nothing."""
    EVENTS.put(transaction, [(lease.tenant, lease.id, *EVENTS.values(entry)) for lease, entry in appends])


def entries(transaction: Transaction, name: Name, place: int) -> list[LogEntry]:
    """Returns up to `MAX_ENTRIES` entries of a log in order, beginning at a place.

    Args:
      place: Number of the first entry.
    """
    rest = f"WHERE {_LOG} AND number >= ? ORDER BY number LIMIT ?"
    return EVENTS.rows(transaction, rest, *name, place, MAX_ENTRIES)


def deltas(transaction: Transaction, name: Name, place: int) -> list[tuple[int, bytes]]:
    """Returns up to `MAX_ENTRIES` deltas of a log, beginning at a place, with their places."""
    query = f"SELECT number, delta FROM roost_events WHERE {_LOG} AND number >= ? ORDER BY number LIMIT ?"
    return [(number, bytes(delta)) for number, delta in transaction.rows(query, *name, place, MAX_ENTRIES)]


def follow(transaction: Transaction, name: Name, place: int) -> tuple[Sequence[LogEntry], bool]:
    """Returns up to `MAX_ENTRIES` entries of a log, beginning at a place, and whether more may follow."""
    query = f"SELECT is_running FROM roost_responses WHERE {_LOG}"
    found = transaction.rows(query, *name)  # before the log, which is complete if this says so
    some = entries(transaction, name, place)
    return some, len(some) == MAX_ENTRIES or (bool(found) and bool(found[0][0]))


def end_of_log(transaction: Transaction, name: Name) -> LogEnd:
    """Returns the counts at the end of a log, except its bytes."""
    columns = "number, first_event, num_events, first_token, num_tokens"
    query = f"SELECT {columns} FROM roost_events WHERE {_LOG} ORDER BY number DESC LIMIT 1"
    found = transaction.rows(query, *name)
    return LogEnd().after(LogEntry(*found[0])) if found else LogEnd()


def kept_events(transaction: Transaction, name: Name) -> tuple[int, int]:
    """Returns the numbers of the first event that a log still has and of its next event; 0 and 0 if it has none."""
    query = f"SELECT first_event FROM roost_events WHERE {_LOG} ORDER BY number LIMIT 1"
    first = next((int(event) for (event,) in transaction.rows(query, *name)), 0)
    return first, end_of_log(transaction, name).num_events


def entry_of(transaction: Transaction, name: Name, event: int) -> int:
    """Returns the place of the first entry that has the event of this number or a later one, by binary search.

    An index by events would find it faster, but slow down every append.
    """
    query = f"SELECT first_event + num_events FROM roost_events WHERE {_LOG} AND number >= ? ORDER BY number LIMIT 1"

    def next_event(place: int) -> int:
        found = transaction.rows(query, *name, place)
        return int(found[0][0]) if found else event + 1  # the log was deleted

    num_places = end_of_log(transaction, name).num_entries
    return bisect_right(range(num_places), event, key=next_event)


def drop(transaction: Transaction, name: Name, first: int) -> None:
    """Deletes the entries of a log before a number."""
    transaction.execute(f"DELETE FROM roost_events WHERE {_LOG} AND number < ?", *name, first)


def delete(transaction: Transaction, name: Name) -> None:
    """Deletes a log."""
    transaction.execute(f"DELETE FROM roost_events WHERE {_LOG}", *name)


def pack_delta(delta: Delta) -> bytes:
    """Returns the JSON of a delta that is not the last of its choice."""
    return orjson.dumps({name: value for name in _PACKED if (value := getattr(delta, name))})


def unpack_delta(packed: bytes) -> Delta:
    """Returns the delta from the result of `pack_delta`."""
    fields: dict[str, Any] = stored_json(packed)
    calls = tuple(CallPiece(**piece) for piece in fields.pop("calls", ()))
    logprobs = tuple(
        TokenLogprobs(each["logprob"], *(tuple(map(tuple, each[name])) for name in ("top", "named")))
        for each in fields.pop("logprobs", ())
    )
    token_ids = tuple(fields.pop("token_ids", ()))
    return Delta(0, calls=calls, logprobs=logprobs, token_ids=token_ids, **fields)
