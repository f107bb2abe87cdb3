"""Tables of the store, and their upgrades.

Old and new replicas work on one database while a fleet is upgraded. An upgrade therefore only adds tables, indexes and
columns that have a default, and statements name their columns. An upgrade after which older code would do harm raises
the oldest version that may still use the database; such code then refuses to start.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .database import Transaction
from .dialects import Dialect
from .errors import StoreUnavailableError


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Step from the version before to this one.

    Attributes:
      statements: Statements in both dialects' words.
      oldest: Oldest version of the code that may use the database afterwards.
    """

    statements: Sequence[str]
    oldest: int


_FIRST: Final = Upgrade(
    (
        """
        CREATE TABLE roost_responses (
            tenant TEXT NOT NULL,
            id TEXT NOT NULL,
            created DOUBLE PRECISION NOT NULL,
            response {bytes} NOT NULL,
            history {bytes} NOT NULL,
            output {bytes} NOT NULL,
            num_bytes BIGINT NOT NULL,
            is_background INTEGER NOT NULL,
            is_streamed INTEGER NOT NULL,
            is_running INTEGER NOT NULL,
            model TEXT,
            request {bytes},
            prompt {bytes},
            owner TEXT,
            fence BIGINT NOT NULL,
            lease_until DOUBLE PRECISION NOT NULL,
            num_stalls INTEGER NOT NULL,
            checkpoint TEXT,
            checkpoint_tokens BIGINT,
            PRIMARY KEY (tenant, id)
        )
        """,
        "CREATE INDEX roost_responses_leases ON roost_responses (lease_until) WHERE is_running = 1",
        "CREATE INDEX roost_responses_age ON roost_responses (tenant, created)",
        """
        CREATE TABLE roost_events (
            tenant TEXT NOT NULL,
            id TEXT NOT NULL,
            number BIGINT NOT NULL,
            first_event BIGINT NOT NULL,
            num_events INTEGER NOT NULL,
            first_token BIGINT NOT NULL,
            num_tokens INTEGER NOT NULL,
            delta {bytes} NOT NULL,
            events {bytes} NOT NULL,
            PRIMARY KEY (tenant, id, number)
        )
        """,
    ),
    oldest=1,
)

_EXACT: Final = Upgrade(
    (
        "ALTER TABLE roost_responses ADD COLUMN engine TEXT",
        "ALTER TABLE roost_responses ADD COLUMN exact_fence BIGINT",
    ),
    oldest=1,
)

_BATCHES: Final = Upgrade(
    (
        """
        CREATE TABLE roost_files (
            tenant TEXT NOT NULL,
            id TEXT NOT NULL,
            created DOUBLE PRECISION NOT NULL,
            purpose TEXT NOT NULL,
            name TEXT NOT NULL,
            num_bytes BIGINT NOT NULL,
            num_lines BIGINT NOT NULL,
            url TEXT NOT NULL,
            is_whole INTEGER NOT NULL,
            PRIMARY KEY (tenant, id)
        )
        """,
        """
        CREATE TABLE roost_file_lines (
            tenant TEXT NOT NULL,
            file TEXT NOT NULL,
            number BIGINT NOT NULL,
            line {bytes} NOT NULL,
            PRIMARY KEY (tenant, file, number)
        )
        """,
        """
        CREATE TABLE roost_batches (
            tenant TEXT NOT NULL,
            id TEXT NOT NULL,
            status TEXT NOT NULL,
            model TEXT NOT NULL,
            url TEXT NOT NULL,
            input_file TEXT NOT NULL,
            output_file TEXT NOT NULL,
            error_file TEXT NOT NULL,
            time_window TEXT NOT NULL,
            metadata {bytes} NOT NULL,
            created DOUBLE PRECISION NOT NULL,
            expires DOUBLE PRECISION NOT NULL,
            ended DOUBLE PRECISION,
            num_lines BIGINT NOT NULL,
            num_completed BIGINT NOT NULL,
            num_failed BIGINT NOT NULL,
            next_line BIGINT NOT NULL,
            claimed DOUBLE PRECISION NOT NULL,
            PRIMARY KEY (tenant, id)
        )
        """,
        "CREATE INDEX roost_batches_claims ON roost_batches (claimed) WHERE status = 'in_progress'",
        """
        CREATE TABLE roost_batch_claims (
            tenant TEXT NOT NULL,
            batch TEXT NOT NULL,
            number BIGINT NOT NULL,
            model TEXT NOT NULL,
            owner TEXT,
            fence BIGINT NOT NULL,
            num_claims INTEGER NOT NULL,
            lease_until DOUBLE PRECISION NOT NULL,
            PRIMARY KEY (tenant, batch, number)
        )
        """,
        "CREATE INDEX roost_batch_claims_leases ON roost_batch_claims (lease_until)",
    ),
    oldest=1,
)

_RUN_ORDER: Final = Upgrade(
    (
        """
        CREATE TABLE roost_file_order (
            tenant TEXT NOT NULL,
            file TEXT NOT NULL,
            segment BIGINT NOT NULL,
            offsets {bytes} NOT NULL,
            PRIMARY KEY (tenant, file, segment)
        )
        """,
        "ALTER TABLE roost_batches ADD COLUMN output_bytes BIGINT NOT NULL DEFAULT 0",
        "ALTER TABLE roost_batches ADD COLUMN error_bytes BIGINT NOT NULL DEFAULT 0",
        *(
            f"""
            UPDATE roost_batches SET {kind}_bytes = (
                SELECT coalesce(sum(length(line)), 0) FROM roost_file_lines
                WHERE roost_file_lines.tenant = roost_batches.tenant AND file = {kind}_file)
            """
            for kind in ("output", "error")
        ),
    ),
    oldest=4,  # older code takes lines by their numbers, and would run some twice and others never
)

UPGRADES: Final[Sequence[Upgrade]] = (_FIRST, _EXACT, _BATCHES, _RUN_ORDER)
"""All upgrades; the n-th one leads to version n."""


def upgrade(transaction: Transaction, dialect: Dialect, upgrades: Sequence[Upgrade] = UPGRADES) -> None:
    """Brings the tables to this code's version, unless they are newer. Call it in a transaction that writes.

    Raises:
      StoreUnavailableError: The database belongs to code that is too new for this one.
    """
    if dialect.lock_schema is not None:
        transaction.execute(dialect.lock_schema)
    transaction.execute("CREATE TABLE IF NOT EXISTS roost_schema (version INTEGER NOT NULL, oldest INTEGER NOT NULL)")
    found = transaction.rows("SELECT version, oldest FROM roost_schema")
    version, oldest = found[0] if found else (0, 0)
    if oldest > len(upgrades):
        message = f"the store's tables have version {version}, and this server knows up to {len(upgrades)}: upgrade it"
        raise StoreUnavailableError(message)
    if version >= len(upgrades):
        return
    for step in upgrades[version:]:
        for statement in step.statements:
            transaction.execute(statement)
    transaction.execute("DELETE FROM roost_schema")
    transaction.execute("INSERT INTO roost_schema VALUES (?, ?)", len(upgrades), upgrades[-1].oldest)
