"""Statements that delete responses and conversations beyond the store's limits, as functions of a transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf
from typing import Final

from ...database.database import Transaction
from ...storage.objects import MAX_FOUND, Bounds, Name
from . import response_table
from .conversation_table import CONVERSATIONS
from .response_table import RESPONSES


@dataclass(frozen=True, slots=True)
class RowLimits:
    """RowLimits on the responses that have ended, with their logs, and on the conversations of each tenant.

    Attributes:
      max_rows: Maximum number of each kind.
      max_bytes: Maximum bytes of each kind.
    """

    max_rows: int = 10_000
    max_bytes: int = 2**30


DEFAULT: Final = RowLimits()
"""RowLimits of a database that replicas share."""


def make_room(transaction: Transaction, tenant: str, limits: RowLimits) -> None:
    """Deletes the oldest responses and conversations of a tenant that are beyond its limits.

    Call it at the end of a transaction that has added some. It waits for other replicas' transactions that have.
    """
    transaction.execute("{lock_name}", tenant)
    bounds = Bounds(inf, limits.max_rows, limits.max_bytes)
    beyond = RESPONSES.beyond(transaction, tenant, bounds)
    for response_id in RESPONSES.unlocked(transaction, tenant, beyond):
        response_table.remove(transaction, tenant, response_id)
    beyond = CONVERSATIONS.beyond(transaction, tenant, bounds)
    for conversation in CONVERSATIONS.unlocked(transaction, tenant, beyond):
        CONVERSATIONS.hide(transaction, tenant, conversation)


def expired(transaction: Transaction, max_age_s: float, limits: RowLimits) -> Sequence[Name]:
    """Returns responses to delete: the oldest ended ones, and running ones that have had no owner for too long.

    Args:
      max_age_s: Age in seconds after which responses are deleted.
    """
    bounds = Bounds(max_age_s, limits.max_rows, limits.max_bytes)
    found = dict.fromkeys(RESPONSES.expired(transaction, bounds))
    found |= dict.fromkeys(response_table.abandoned(transaction, max_age_s))
    return list(islice(found, MAX_FOUND))


def expired_conversations(transaction: Transaction, max_age_s: float, limits: RowLimits) -> Sequence[Name]:
    """Returns conversations to delete: the oldest ones.

    Args:
      max_age_s: Seconds after its last change at which a conversation is deleted.
    """
    bounds = Bounds(max_age_s, limits.max_rows, limits.max_bytes)
    return CONVERSATIONS.expired(transaction, bounds)


def delete_all(transaction: Transaction, names: Sequence[Name]) -> None:
    """Deletes responses and their logs."""
    for tenant, response_id in names:
        response_table.delete(transaction, tenant, response_id)


def hide_all(transaction: Transaction, names: Sequence[Name]) -> None:
    """Hides conversations."""
    for tenant, conversation in names:
        CONVERSATIONS.hide(transaction, tenant, conversation)
