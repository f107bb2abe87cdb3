"""Statements with which replicas become owners of running responses, as functions of a transaction.

The protocol of leases: `response_table.insert` makes the writer the owner under fencing number 1. Each write of an
owner checks its number and extends its lease. When a lease has ended, a replica that serves the same model may `claim`
the response, which gives it the next number. `seize` gives it the next number immediately, in order to cancel.
Responses that have ended have no owner.

The column `engine` names the engine whose tokens are in the log, and `exact_fence` is the number of the last owner that
continued them exactly. An owner that reads them as a prompt leaves both unchanged. The log is therefore exact as long
as `exact_fence` equals `fence`.

An owner that gives a response back sets `owner` to NULL, so a lease that ended with an owner means that the owner has
died. `num_deaths` counts these deaths. An owner sets `is_alone` before it begins a response without other adopted ones,
and its death then also counts in `num_lone_deaths`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, islice, takewhile, zip_longest
from typing import Final

from ...database.database import Transaction
from ...storage.objects import tenants_with
from . import event_table
from .records import SUSPECT_DEATHS, CheckpointReference, Claim, Deaths, Job, Lease
from .response_table import HELD, LEASE_S, RESPONSES, check, values_of

_HAS_TOKENS: Final = """
    EXISTS (SELECT 1 FROM roost_events
    WHERE roost_events.tenant = roost_responses.tenant AND roost_events.id = roost_responses.id AND num_tokens > 0)
"""

type _Waiting = tuple[str, str, bool]
"""Tenant and id of a response without an owner, and whether it is a suspect."""


def claim(
    transaction: Transaction,
    owner: str,
    model: str,
    limit: int,
    engine: str | None = None,
    after_s: float = 0.0,
    after: str = "",
) -> list[Claim]:
    """Makes a replica the owner of responses whose leases have ended. Locked responses are skipped.

    Tenants take turns; within a tenant, the responses that have waited longest come first. A suspect is claimed alone.

    Args:
      model: Identity of the model that the replica serves.
      limit: Maximum number of responses.
      engine: Identity of the replica's engine.
      after_s: Seconds for which a response is reserved for an engine that can continue it exactly.
      after: Tenant that had the last turn.
    """
    waiting = []
    for tenant in _in_turn(waiting_tenants(transaction), after):
        if some := _waiting(transaction, tenant, model, limit, engine, after_s):
            waiting.append(some)
        if len(waiting) == limit:
            break
    found = _until_suspect(list(islice(_by_turns(waiting), limit)))
    if found:  # fails if logs cannot be written, before anything is adopted
        transaction.execute("INSERT INTO roost_events SELECT * FROM roost_events WHERE tenant = '' AND 1 = 0")
    return [_own(transaction, owner, tenant, response_id, engine) for tenant, response_id, _ in found]


def waiting_tenants(transaction: Transaction) -> list[str]:
    """Returns the tenants that have responses without an owner."""
    is_waiting = """
        EXISTS (SELECT 1 FROM roost_responses WHERE is_running = 1 AND tenant = name AND lease_until <= {now})
    """
    return tenants_with(transaction, "roost_responses", "is_running = 1", is_waiting)


def _in_turn(tenants: Iterable[str], after: str) -> list[str]:
    """Returns tenants sorted by name, beginning with those after the tenant that had the last turn."""
    return sorted(tenants, key=lambda name: (name <= after, name))


def _waiting(
    transaction: Transaction, tenant: str, model: str, limit: int, engine: str | None, after_s: float
) -> list[_Waiting]:
    """Returns and locks a tenant's responses that a replica may claim, longest waiting first."""
    rows = transaction.rows(
        f"""
        SELECT tenant, id, num_deaths + CASE WHEN owner IS NULL THEN 0 ELSE 1 END FROM roost_responses
        WHERE is_running = 1 AND tenant = ? AND lease_until <= {{now}} AND model = ? AND (
            lease_until < {{now}} - ? OR engine = ? OR exact_fence <> fence OR NOT {_HAS_TOKENS})
        ORDER BY lease_until LIMIT ? {{skip_locked}}
        """,
        tenant,
        model,
        after_s,
        engine,
        limit,
    )
    return [(name, response_id, num_deaths >= SUSPECT_DEATHS) for name, response_id, num_deaths in rows]


def _by_turns(waiting: Sequence[Sequence[_Waiting]]) -> Iterable[_Waiting]:
    """Yields the first response of each tenant, then the second of each, and so on."""
    return (each for each in chain.from_iterable(zip_longest(*waiting)) if each is not None)


def _until_suspect(waiting: Sequence[_Waiting]) -> Sequence[_Waiting]:
    """Returns the responses before the first suspect, or the suspect alone if it comes first."""
    if waiting and waiting[0][2]:
        return waiting[:1]
    return list(takewhile(lambda each: not each[2], waiting))


def set_alone(transaction: Transaction, lease: Lease, *, is_alone: bool) -> None:
    """Records whether the owner runs no other adopted response, so that its death counts against the response.

    Raises:
      FencedError: The lease's holder is no longer the owner.
    """
    update = f"UPDATE roost_responses SET is_alone = ? WHERE {HELD}"
    changed = transaction.execute(update, int(is_alone), *values_of(lease))
    check(changed.rowcount, lease)


def seize(transaction: Transaction, owner: str, tenant: str, response_id: str) -> Claim | None:
    """Makes a replica the owner of a running response, even if it has an owner; None if no such response is running."""
    found = transaction.rows(
        "SELECT 1 FROM roost_responses WHERE tenant = ? AND id = ? AND is_running = 1 {lock}", tenant, response_id
    )
    return _own(transaction, owner, tenant, response_id, None, is_seized=True) if found else None


def _own(
    transaction: Transaction, owner: str, tenant: str, response_id: str, engine: str | None, *, is_seized: bool = False
) -> Claim:
    """Makes a replica the owner of a response, whose row the transaction has locked."""
    columns = "model, request, prompt, engine, exact_fence, fence, checkpoint, checkpoint_tokens"
    query = f"SELECT {columns}, {RESPONSES.columns} FROM roost_responses WHERE tenant = ? AND id = ?"
    ((model, request, prompt, earlier, exact_fence, fence, name, num_tokens, *record),) = transaction.rows(
        query, tenant, response_id
    )
    log = event_table.end_of_log(transaction, tenant, response_id)
    is_exact = engine is not None and (not log.num_tokens or (engine == earlier and exact_fence == fence))
    lease, decoder = Lease(tenant, response_id, fence + 1), engine if is_exact else earlier
    death = "0" if is_seized else "CASE WHEN owner IS NULL THEN 0 ELSE 1 END"
    ((num_deaths, num_alone, log_bytes),) = transaction.rows(
        f"""
        UPDATE roost_responses SET owner = ?, fence = ?, lease_until = {{now}} + {LEASE_S}, engine = ?,
            exact_fence = ?, num_deaths = num_deaths + {death}, num_lone_deaths = num_lone_deaths + is_alone * {death},
            is_alone = 0
        WHERE tenant = ? AND id = ?
        RETURNING num_deaths, num_lone_deaths, log_bytes
        """,
        owner,
        lease.fence,
        decoder,
        lease.fence if is_exact else exact_fence,
        tenant,
        response_id,
    )
    return Claim(
        lease,
        RESPONSES.of(record),
        Job(model, request, prompt, decoder),
        Deaths(num_deaths, num_alone),
        replace(log, num_bytes=log_bytes),
        is_exact,
        None if name is None else CheckpointReference(name, num_tokens),
    )
