"""Rows of batches on both databases, with a clock that tests move, and claims to their lines."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from roost.server.database.database import Database, Transaction
from roost.server.features.batches import batch_table, file_table
from roost.server.features.batches.batch_lines import LineResult
from roost.server.features.batches.batch_table import BatchRecord, BatchStatus, LineClaim, LineTable
from roost.server.storage.claims import Places

MODEL = "model"

type Run = Callable[..., Any]
"""Runs a function of a transaction, with these arguments, and commits."""


class NotHeld(Exception):
    """Nothing was stored of a line."""


def runner(database: Database) -> Run:
    return lambda work, **options: database.run_now(lambda each: work(each, **options), writes=True)


def at(database: Database, now: float) -> None:
    """Sets the clock."""
    database.run_now(lambda each: each.execute("UPDATE test_clock SET now = ?", now), writes=True)


def make_batch(
    transaction: Transaction,
    name: str,
    num_lines: int,
    tenant: str = "",
    window_s: float = 1e6,
    output_expires_s: float | None = None,
) -> None:
    lines = [b"%d\n" % number for number in range(num_lines)]
    file_table.begin(transaction, tenant, f"in-{name}", "batch", "in.jsonl")
    file_table.add_lines(transaction, tenant, f"in-{name}", 1, lines, sum(map(len, lines)))
    file_table.finish(transaction, tenant, f"in-{name}", "/v1/completions")
    files = f"in-{name}", f"out-{name}", f"err-{name}"
    batch = BatchRecord(
        tenant, name, BatchStatus.IN_PROGRESS, MODEL, "/v1/x", *files, "24h", b"{}", 0.0, 0.0, None, num_lines
    )
    batch_table.insert(transaction, replace(batch, output_expires_s=output_expires_s), window_s)


def claimed(run: Run, owner: str, limit: int, max_bytes: int = 10**9, **places: Any) -> list[LineClaim]:
    """Claims as many lines as a replica has places for."""
    room = Places(limit, **{"max_of_tenant": limit, **places})
    return run(LineTable(max_bytes).claim, owner=owner, model=MODEL, places=room)


def end(run: Run, claim: LineClaim, *, fails: bool = False) -> None:
    """Ends a line, unless it is another replica's by now."""
    if not run(batch_table.end, results={claim.lease: LineResult(b"done " + claim.data, fails)}):
        raise NotHeld
