"""Statements that delete responses and conversations beyond the store's limits, as functions of a transaction."""

from collections.abc import Sequence
from itertools import islice
from math import inf
from typing import Final

from ...database import expiry
from ...database.database import Transaction
from ...database.expiry import MAX_FOUND, BoundedRows, Bounds, Name
from . import response_table
from .conversations import conversation_table

MAX_RESPONSES: Final = 10_000
MAX_CONVERSATIONS: Final = 10_000
MAX_BYTES: Final = 2**30
"""Limits on the responses that have ended, with their logs, and on the conversations that each tenant has in the
database. Each kind has that many bytes."""

_ENDED: Final = BoundedRows("roost_responses", condition="is_running = 0")


def make_room(transaction: Transaction, tenant: str) -> None:
    """Deletes the oldest responses and conversations of a tenant that are beyond its limits.

    Call it at the end of a transaction that has added some. It waits for other replicas' transactions that have.
    """
    transaction.execute("{lock_name}", tenant)
    beyond = expiry.beyond(transaction, _ENDED, tenant, Bounds(inf, MAX_RESPONSES, MAX_BYTES))
    for response_id in expiry.unlocked(transaction, _ENDED, tenant, beyond):
        response_table.delete(transaction, tenant, response_id)
    rows = conversation_table.ROWS
    beyond = expiry.beyond(transaction, rows, tenant, Bounds(inf, MAX_CONVERSATIONS, MAX_BYTES))
    for conversation in expiry.unlocked(transaction, rows, tenant, beyond):
        conversation_table.hide(transaction, tenant, conversation)


def expired(
    transaction: Transaction, max_age_s: float, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES
) -> Sequence[Name]:
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


def expired_conversations(transaction: Transaction, max_age_s: float) -> Sequence[Name]:
    """Returns conversations to delete: the oldest ones.

    Args:
      max_age_s: Seconds after its last change at which a conversation is deleted.
    """
    return expiry.expired(transaction, conversation_table.ROWS, Bounds(max_age_s, MAX_CONVERSATIONS, MAX_BYTES))


def delete_all(transaction: Transaction, names: Sequence[Name]) -> None:
    """Deletes responses and their logs."""
    for tenant, response_id in names:
        response_table.delete(transaction, tenant, response_id)


def hide_all(transaction: Transaction, names: Sequence[Name]) -> None:
    """Hides conversations."""
    for tenant, conversation in names:
        conversation_table.hide(transaction, tenant, conversation)
