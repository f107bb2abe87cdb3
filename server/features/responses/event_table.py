"""All statements on the logs of responses, as functions of a transaction."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Final

from ...database.database import Transaction, placeholders
from .records import Lease, LogEnd, LogEntry

MAX_ENTRIES: Final = 256
"""Maximum number of log entries that are read at a time."""

_ENTRY: Final = "number, first_event, num_events, first_token, num_tokens, delta, events"
_LOG: Final = "tenant = ? AND id = ?"


def append(transaction: Transaction, appends: Sequence[tuple[Lease, LogEntry]]) -> None:
    """Appends entries whose leases are held. Repeating it changes nothing."""
    if not appends:
        return
    transaction.execute(
        f"""
        INSERT INTO roost_events (tenant, id, {_ENTRY}) VALUES {placeholders(len(appends), 9)}
        ON CONFLICT (tenant, id, number) DO NOTHING
        """,
        *(value for lease, entry in appends for value in (lease.tenant, lease.id, *_values(entry))),
    )


def entries(transaction: Transaction, tenant: str, response_id: str, place: int) -> list[LogEntry]:
    """Returns up to `MAX_ENTRIES` entries of a log in order, beginning at a place.

    Args:
      place: Number of the first entry.
    """
    query = f"SELECT {_ENTRY} FROM roost_events WHERE {_LOG} AND number >= ? ORDER BY number LIMIT ?"
    return [_entry(row) for row in transaction.rows(query, tenant, response_id, place, MAX_ENTRIES)]


def deltas(transaction: Transaction, tenant: str, response_id: str, place: int) -> tuple[Sequence[bytes], int]:
    """Returns up to `MAX_ENTRIES` deltas of a log, beginning at a place, and the place after them."""
    query = f"SELECT number, delta FROM roost_events WHERE {_LOG} AND number >= ? ORDER BY number LIMIT ?"
    rows = transaction.rows(query, tenant, response_id, place, MAX_ENTRIES)
    return [bytes(delta) for _, delta in rows if delta], rows[-1][0] + 1 if rows else place


def follow(transaction: Transaction, tenant: str, response_id: str, place: int) -> tuple[Sequence[LogEntry], bool]:
    """Returns up to `MAX_ENTRIES` entries of a log, beginning at a place, and whether more may follow."""
    query = f"SELECT is_running FROM roost_responses WHERE {_LOG}"
    found = transaction.rows(query, tenant, response_id)  # before the log, which is complete if this says so
    some = entries(transaction, tenant, response_id, place)
    return some, len(some) == MAX_ENTRIES or (bool(found) and bool(found[0][0]))


def end_of_log(transaction: Transaction, tenant: str, response_id: str) -> LogEnd:
    """Returns the counts at the end of a log, except its bytes."""
    columns = "number, first_event, num_events, first_token, num_tokens"
    query = f"SELECT {columns} FROM roost_events WHERE {_LOG} ORDER BY number DESC LIMIT 1"
    found = transaction.rows(query, tenant, response_id)
    return LogEnd().after(LogEntry(*found[0])) if found else LogEnd()


def kept_events(transaction: Transaction, tenant: str, response_id: str) -> tuple[int, int]:
    """Returns the numbers of the first event that a log still has and of its next event; 0 and 0 if it has none."""
    query = f"SELECT first_event FROM roost_events WHERE {_LOG} ORDER BY number LIMIT 1"
    first = next((int(event) for (event,) in transaction.rows(query, tenant, response_id)), 0)
    return first, end_of_log(transaction, tenant, response_id).num_events


def entry_of(transaction: Transaction, tenant: str, response_id: str, event: int) -> int:
    """Returns the place of the first entry that has the event of this number or a later one, by binary search.

    An index by events would find it faster, but slow down every append.
    """
    query = f"SELECT first_event + num_events FROM roost_events WHERE {_LOG} AND number >= ? ORDER BY number LIMIT 1"

    def next_event(place: int) -> int:
        found = transaction.rows(query, tenant, response_id, place)
        return int(found[0][0]) if found else event + 1  # the log was deleted

    num_places = end_of_log(transaction, tenant, response_id).num_entries
    return bisect_right(range(num_places), event, key=next_event)


def drop(transaction: Transaction, tenant: str, response_id: str, first: int) -> None:
    """Deletes the entries of a log before a number."""
    transaction.execute(f"DELETE FROM roost_events WHERE {_LOG} AND number < ?", tenant, response_id, first)


def delete(transaction: Transaction, tenant: str, response_id: str) -> None:
    """Deletes a log."""
    transaction.execute(f"DELETE FROM roost_events WHERE {_LOG}", tenant, response_id)


def _values(entry: LogEntry) -> tuple[Any, ...]:
    counts = entry.number, entry.first_event, entry.num_events, entry.first_token, entry.num_tokens
    return (*counts, entry.delta, entry.events)


def _entry(row: Sequence[Any]) -> LogEntry:
    number, first_event, num_events, first_token, num_tokens, delta, events = row
    return LogEntry(number, first_event, num_events, first_token, num_tokens, bytes(delta), bytes(events))
