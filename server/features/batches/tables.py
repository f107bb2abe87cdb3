"""Tables of files and batches, and the upgrades of these tables."""

from typing import Final

from ...database.schema import Tables, Upgrade
from .batch_table import BATCHES
from .file_table import FILES, LINES, ORDER

_FIRST: Final = Upgrade(
    (
        *FILES.statements,
        *LINES.statements,
        *ORDER.statements,
        *BATCHES.statements,
        """
        CREATE TABLE roost_batch_claims (
            tenant TEXT NOT NULL,
            batch TEXT NOT NULL,
            number BIGINT NOT NULL,
            model TEXT NOT NULL,
            owner TEXT,
            fence BIGINT NOT NULL,
            lease_until DOUBLE PRECISION NOT NULL,
            num_refusals INTEGER NOT NULL DEFAULT 0,
            num_deaths INTEGER NOT NULL DEFAULT 0,
            num_lone_deaths INTEGER NOT NULL DEFAULT 0,
            lone_fence BIGINT NOT NULL DEFAULT 0,
            PRIMARY KEY (tenant, batch, number)
        )
        """,
        "CREATE INDEX roost_batch_claims_due ON roost_batch_claims (tenant, model, lease_until)",
        "CREATE INDEX roost_batch_claims_suspects ON roost_batch_claims (model, lease_until) WHERE num_deaths > 0",
        "CREATE INDEX roost_batch_claims_owners ON roost_batch_claims (owner)",
        """
        CREATE TABLE roost_batch_turns (
            tenant TEXT NOT NULL PRIMARY KEY,
            claimed DOUBLE PRECISION NOT NULL,
            num_turns BIGINT NOT NULL
        )
        """,
    ),
    oldest=7,
)

TABLES: Final = Tables("batches", (_FIRST,), first=7)
