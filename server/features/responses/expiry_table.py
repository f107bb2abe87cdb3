"""Statements that find and delete responses beyond the store's limits, as functions of a transaction."""

from collections.abc import Sequence
from itertools import islice
from typing import Final

from ...database import expiry
from ...database.database import Transaction
from ...database.expiry import MAX_FOUND, BoundedRows, Bounds, Name
from . import response_table

_ENDED: Final = BoundedRows("roost_responses", condition="is_running = 0")


def expired(transaction: Transaction, max_age_s: float, max_responses: int, max_bytes: int) -> Sequence[Name]:
    """Returns responses to delete: the oldest ended ones, and running ones that have had no owner for too long.

    Args:
      max_age_s: Age in seconds after which responses are deleted.
      max_responses: Maximum number of responses of each tenant.
      max_bytes: Maximum bytes of each tenant's responses.
    """
    found = dict.fromkeys(expiry.expired(transaction, _ENDED, Bounds(max_age_s, max_responses, max_bytes)))
    abandoned = "is_running = 1 AND lease_until < {now} - ? ORDER BY lease_until"
    query = f"SELECT tenant, id FROM roost_responses WHERE {abandoned} LIMIT {MAX_FOUND}"
    found |= dict.fromkeys(transaction.rows(query, max_age_s))
    return list(islice(found, MAX_FOUND))


def delete_all(transaction: Transaction, names: Sequence[Name]) -> None:
    """Deletes responses and their logs."""
    for tenant, response_id in names:
        response_table.delete(transaction, tenant, response_id)
