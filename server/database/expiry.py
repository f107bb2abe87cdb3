"""Statements that find rows beyond each tenant's limits, as functions of a transaction."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import batched, islice
from typing import Final, NamedTuple

from .database import Transaction, placeholders

type Name = tuple[str, str]
"""Tenant and id of a row."""

MAX_FOUND: Final = 1000
"""Maximum number of rows to delete at a time for each reason."""

_MAX_NAMED: Final = 250
"""Maximum number of ids in a statement."""


@dataclass(frozen=True, slots=True)
class BoundedRows:
    """Limited rows, which have a tenant, an id and `num_bytes`.

    Attributes:
      table: Name of the table.
      age: Column with the time at which their age begins. It needs an index of its own, and one that begins with the
        tenant.
      condition: Condition of the rows, which both indexes must cover.
    """

    table: str
    age: str = "created"
    condition: str = "1 = 1"


class Bounds(NamedTuple):
    """Limits on rows.

    Attributes:
      max_age_s: Age in seconds after which rows are deleted.
      max_rows: Maximum number of rows of each tenant.
      max_bytes: Maximum bytes of each tenant's rows.
    """

    max_age_s: float
    max_rows: int
    max_bytes: int


def expired(transaction: Transaction, rows: BoundedRows, bounds: Bounds) -> Sequence[Name]:
    """Returns the oldest rows, whose deletion brings the others within the limits, up to `MAX_FOUND` per reason."""
    source = f"FROM {rows.table} WHERE {rows.condition}"
    old = f"SELECT tenant, id {source} AND {rows.age} < {{now}} - ? ORDER BY {rows.age} LIMIT {MAX_FOUND}"
    found: dict[Name, None] = dict.fromkeys(transaction.rows(old, bounds.max_age_s))
    for tenant in tenants_with(transaction, rows.table, rows.condition):
        found |= dict.fromkeys((tenant, name) for name in beyond(transaction, rows, tenant, bounds))
    return list(islice(found, MAX_FOUND))


def tenants_with(transaction: Transaction, table: str, condition: str, filter: str = "1 = 1") -> list[str]:
    """Returns the tenants that have rows of a condition, by a few index lookups for each tenant.

    Args:
      condition: Condition of a row. The tenants of such rows must be indexed.
      filter: Further condition of a tenant, whose column is `name`.
    """
    rows = transaction.rows(
        f"""
        WITH RECURSIVE tenants (name) AS (
            SELECT min(tenant) FROM {table} WHERE {condition}
            UNION ALL
            SELECT (SELECT min(tenant) FROM {table} WHERE {condition} AND tenant > name) FROM tenants
            WHERE name IS NOT NULL
        )
        SELECT name FROM tenants WHERE name IS NOT NULL AND {filter}
        """
    )
    return [name for (name,) in rows]


def beyond(transaction: Transaction, rows: BoundedRows, tenant: str, bounds: Bounds) -> list[str]:
    """Returns the oldest rows of a tenant, whose deletion brings the others within its limits, up to `MAX_FOUND`."""
    source = f"FROM {rows.table} WHERE {rows.condition} AND tenant = ?"
    ((count, num_bytes),) = transaction.rows(f"SELECT count(*), coalesce(sum(num_bytes), 0) {source}", tenant)
    if count <= bounds.max_rows and num_bytes <= bounds.max_bytes:
        return []
    found = []
    oldest = f"SELECT id, num_bytes {source} ORDER BY {rows.age} LIMIT {MAX_FOUND}"
    for name, size in transaction.rows(oldest, tenant):
        if count <= bounds.max_rows and num_bytes <= bounds.max_bytes:
            break
        found.append(name)
        count, num_bytes = count - 1, num_bytes - size
    return found


def unlocked(transaction: Transaction, rows: BoundedRows, tenant: str, names: Sequence[str]) -> Iterator[str]:
    """Yields those rows of a tenant that no other transaction has locked, and locks them."""
    for some in batched(names, _MAX_NAMED):
        query = f"SELECT id FROM {rows.table} WHERE tenant = ? AND id IN {placeholders(1, len(some))} {{skip_locked}}"
        yield from (name for (name,) in transaction.rows(query, tenant, *some))
