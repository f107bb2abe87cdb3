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
    oldest=2,  # older code takes lines by their numbers, and would run some twice and others never
)

TABLES: Final = Tables("batches", (_FIRST, _RUN_ORDER), common_versions=(0, 0, 0, 1, 2))
