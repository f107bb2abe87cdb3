"""Tables of files and batches, and the upgrades of these tables."""

from typing import Final

from ...database.schema import Tables, Upgrade

_FIRST: Final = Upgrade(
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
            expires DOUBLE PRECISION,
            is_whole INTEGER NOT NULL,
            PRIMARY KEY (tenant, id)
        )
        """,
        "CREATE INDEX roost_files_list ON roost_files (tenant, created, id) WHERE is_whole = 1",
        "CREATE INDEX roost_files_purposes ON roost_files (tenant, purpose, created, id) WHERE is_whole = 1",
        "CREATE INDEX roost_files_age ON roost_files (created) WHERE is_whole = 1",
        "CREATE INDEX roost_files_unfinished ON roost_files (created) WHERE is_whole = 0",
        "CREATE INDEX roost_files_expiries ON roost_files (expires) WHERE expires IS NOT NULL",
        "CREATE INDEX roost_files_sizes ON roost_files (tenant, num_bytes, num_lines)",
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
        CREATE TABLE roost_file_order (
            tenant TEXT NOT NULL,
            file TEXT NOT NULL,
            segment BIGINT NOT NULL,
            offsets {bytes} NOT NULL,
            PRIMARY KEY (tenant, file, segment)
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
            output_bytes BIGINT NOT NULL DEFAULT 0,
            error_bytes BIGINT NOT NULL DEFAULT 0,
            output_expires_s DOUBLE PRECISION,
            input_tokens BIGINT NOT NULL DEFAULT 0,
            cached_tokens BIGINT NOT NULL DEFAULT 0,
            output_tokens BIGINT NOT NULL DEFAULT 0,
            PRIMARY KEY (tenant, id)
        )
        """,
        "CREATE INDEX roost_batches_list ON roost_batches (tenant, created, id)",
        "CREATE INDEX roost_batches_ended ON roost_batches (created) WHERE status <> 'in_progress'",
        "CREATE INDEX roost_batches_statuses ON roost_batches (status, tenant)",
        "CREATE INDEX roost_batches_inputs ON roost_batches (tenant, input_file) WHERE status = 'in_progress'",
        """
        CREATE INDEX roost_batches_waiting ON roost_batches (tenant, model, claimed, created, id)
        WHERE status = 'in_progress' AND next_line <= num_lines
        """,
        "CREATE INDEX roost_batches_expiries ON roost_batches (expires) WHERE status = 'in_progress'",
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
