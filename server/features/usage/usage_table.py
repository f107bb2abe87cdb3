"""Statements about usage. Replicas add to the same rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

from ...database.database import Transaction


@dataclass(frozen=True, slots=True)
class TenantUsage:
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

    def __add__(self, other: "TenantUsage") -> "TenantUsage":
        return TenantUsage(
            self.num_requests + other.num_requests,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
        )


type Key = tuple[str, str]
"""UTC day and tenant."""


def add(transaction: Transaction, replica: str, day: str, number: int, counts: Mapping[Key, TenantUsage]) -> None:
    """Adds a replica's counts, unless an earlier attempt has added them.

    Args:
      day: Current UTC day.
      number: Number of the addition, which increases with each addition of the replica.
    """
    transaction.execute(
        "INSERT INTO roost_usage_additions (replica, day, number) VALUES (?, ?, 0) ON CONFLICT DO NOTHING", replica, day
    )
    update = "UPDATE roost_usage_additions SET number = ?, day = ? WHERE replica = ? AND number < ?"
    if not transaction.execute(update, number, day, replica, number).rowcount:
        return
    for (counted_day, tenant), usage in sorted(counts.items()):  # in one order, or replicas would lock each other out
        _add(transaction, counted_day, tenant, usage)


def _add(transaction: Transaction, day: str, tenant: str, usage: TenantUsage) -> None:
    transaction.execute(
        """
        INSERT INTO roost_usage (day, tenant, num_requests, prompt_tokens, cached_tokens, completion_tokens)
        VALUES (?, ?, 0, 0, 0, 0) ON CONFLICT DO NOTHING
        """,
        day,
        tenant,
    )
    transaction.execute(
        """
        UPDATE roost_usage SET num_requests = num_requests + ?, prompt_tokens = prompt_tokens + ?,
            cached_tokens = cached_tokens + ?, completion_tokens = completion_tokens + ?
        WHERE day = ? AND tenant = ?
        """,
        usage.num_requests,
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.completion_tokens,
        day,
        tenant,
    )


def probe(transaction: Transaction) -> None:
    """Adds a row and deletes it, to find out whether the tables can be written."""
    name = f"probe {uuid4().hex}"
    _add(transaction, "", name, TenantUsage())
    transaction.execute("DELETE FROM roost_usage WHERE day = '' AND tenant = ?", name)


def read(transaction: Transaction, start: str, end: str, limit: int) -> Sequence[tuple[str, str, TenantUsage]]:
    """Returns day, tenant and usage of the days from `start` to `end`, both included, oldest first."""
    rows = transaction.rows(
        """
        SELECT day, tenant, num_requests, prompt_tokens, cached_tokens, completion_tokens FROM roost_usage
        WHERE day >= ? AND day <= ? ORDER BY day, tenant LIMIT ?
        """,
        start,
        end,
        limit,
    )
    return [(day, tenant, TenantUsage(*map(int, counts))) for day, tenant, *counts in rows]


def expire(transaction: Transaction, before: str, replicas_before: str) -> None:
    """Deletes usage of days before `before`, and additions of replicas inactive since `replicas_before`."""
    transaction.execute("DELETE FROM roost_usage WHERE day < ?", before)
    transaction.execute("DELETE FROM roost_usage_additions WHERE day < ?", replicas_before)
