"""Tables of usage, and their statements. Replicas add to the same rows."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from uuid import uuid4

from ...database.database import Transaction
from ...database.schema import Tables, Upgrade
from ...storage.objects import Table


class TenantUsage(NamedTuple):
    """Usage of a tenant on a day, or a part of it.

    Attributes:
      num_requests: Number of ended requests.
      prompt_tokens: Number of their prompts' tokens. Each prompt is counted once for all of its choices.
      cached_tokens: Number of prompt tokens that came from the prefix cache.
      completion_tokens: Number of generated tokens of all choices.
    """

    num_requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def plus(self, other: "TenantUsage") -> "TenantUsage":
        """Returns the usage of both together."""
        return TenantUsage(*map(sum, zip(self, other, strict=True)))


class UsageAddition(NamedTuple):
    """Last addition of a replica, so that one whose commit was not reported is not repeated.

    Attributes:
      day: UTC day of the addition.
      number: Number of the addition, which increases with each addition of the replica.
    """

    replica: str
    day: str
    number: int


type Key = tuple[str, str]
"""UTC day and tenant."""

_USAGE: Final = Table("roost_usage", TenantUsage, key=("day", "tenant"), under={"day": str, "tenant": str})
_ADDITIONS: Final = Table("roost_usage_additions", UsageAddition, key=("replica",))

TABLES: Final = Tables("usage", (Upgrade((*_USAGE.statements, *_ADDITIONS.statements), oldest=1),))


def today(days_ago: int = 0) -> str:
    """Returns the current UTC day by the machine's clock, or an earlier one, such as "2026-11-29"."""
    return (datetime.now(UTC) - timedelta(days=days_ago)).date().isoformat()


def add(transaction: Transaction, addition: UsageAddition, counts: Mapping[Key, TenantUsage]) -> None:
    """Adds a replica's counts, unless an earlier attempt has added them."""
    newer = "number = excluded.number, day = excluded.day WHERE roost_usage_additions.number < excluded.number"
    (added,) = _ADDITIONS.put(transaction, [addition], f"DO UPDATE SET {newer}")
    if added.rowcount:
        _add(transaction, counts)


def _add(transaction: Transaction, counts: Mapping[Key, TenantUsage]) -> None:
    sums = ", ".join(f"{each} = roost_usage.{each} + excluded.{each}" for each in _USAGE.fields)
    rows = ((*key, *usage) for key, usage in sorted(counts.items()))  # replicas lock rows in one order
    _USAGE.put(transaction, rows, f"DO UPDATE SET {sums}")


def probe(transaction: Transaction) -> None:
    """Adds a row and deletes it, to find out whether the tables can be written."""
    name = f"probe {uuid4().hex}"
    _add(transaction, {("", name): TenantUsage()})
    transaction.execute("DELETE FROM roost_usage WHERE day = '' AND tenant = ?", name)


def read(transaction: Transaction, start: str, end: str, limit: int) -> Sequence[tuple[str, str, TenantUsage]]:
    """Returns day, tenant and usage of the days from `start` to `end`, both included, oldest first."""
    query = f"SELECT {_USAGE.columns} FROM roost_usage WHERE day >= ? AND day <= ? ORDER BY day, tenant LIMIT ?"
    return [(day, tenant, _USAGE.of(counts)) for day, tenant, *counts in transaction.rows(query, start, end, limit)]


def expire(transaction: Transaction, before: str, replicas_before: str) -> None:
    """Deletes usage of days before `before`, and additions of replicas inactive since `replicas_before`."""
    transaction.execute("DELETE FROM roost_usage WHERE day < ?", before)
    transaction.execute("DELETE FROM roost_usage_additions WHERE day < ?", replicas_before)
