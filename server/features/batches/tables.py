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
    oldest=2,  # older code claims lines by their numbers, and would run some twice and others never
)

_INDEXES: Final = Upgrade(
    (
        "CREATE INDEX roost_files_list ON roost_files (tenant, created, id) WHERE is_whole = 1",
        "CREATE INDEX roost_files_purposes ON roost_files (tenant, purpose, created, id) WHERE is_whole = 1",
        "CREATE INDEX roost_files_age ON roost_files (created) WHERE is_whole = 1",
        "CREATE INDEX roost_files_unfinished ON roost_files (created) WHERE is_whole = 0",
        "CREATE INDEX roost_batches_list ON roost_batches (tenant, created, id)",
        "CREATE INDEX roost_batches_ended ON roost_batches (created) WHERE status <> 'in_progress'",
        "CREATE INDEX roost_batches_statuses ON roost_batches (status, tenant)",
        "CREATE INDEX roost_batches_inputs ON roost_batches (tenant, input_file) WHERE status = 'in_progress'",
    ),
    oldest=2,
)

_TURNS: Final = Upgrade(
    (
        """
        CREATE TABLE roost_batch_turns (
            tenant TEXT NOT NULL PRIMARY KEY,
            claimed DOUBLE PRECISION NOT NULL,
            num_turns BIGINT NOT NULL
        )
        """,
        # `num_claims` is for older code only
        "ALTER TABLE roost_batch_claims ADD COLUMN num_refusals INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE roost_batch_claims ADD COLUMN num_deaths INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE roost_batch_claims ADD COLUMN num_lone_deaths INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE roost_batch_claims ADD COLUMN lone_fence BIGINT NOT NULL DEFAULT 0",
        "DROP INDEX roost_batch_claims_leases",  # due lines of all tenants would be searched for one
        "CREATE INDEX roost_batch_claims_due ON roost_batch_claims (tenant, model, lease_until)",
        "CREATE INDEX roost_batch_claims_suspects ON roost_batch_claims (model, lease_until) WHERE num_deaths > 0",
        "CREATE INDEX roost_batch_claims_owners ON roost_batch_claims (owner)",
        """
        CREATE INDEX roost_batches_waiting ON roost_batches (tenant, model, claimed, created, id)
        WHERE status = 'in_progress' AND next_line <= num_lines
        """,
        "CREATE INDEX roost_batches_expiries ON roost_batches (expires) WHERE status = 'in_progress'",
        "CREATE INDEX roost_files_sizes ON roost_files (tenant, num_bytes, num_lines)",
    ),
    oldest=2,
)

_EXPIRIES: Final = Upgrade(
    (
        "ALTER TABLE roost_files ADD COLUMN expires DOUBLE PRECISION",
        "CREATE INDEX roost_files_expiries ON roost_files (expires) WHERE expires IS NOT NULL",
        "ALTER TABLE roost_batches ADD COLUMN output_expires_s DOUBLE PRECISION",
        # does not count lines that older code ends
        "ALTER TABLE roost_batches ADD COLUMN input_tokens BIGINT NOT NULL DEFAULT 0",
        "ALTER TABLE roost_batches ADD COLUMN cached_tokens BIGINT NOT NULL DEFAULT 0",
        "ALTER TABLE roost_batches ADD COLUMN output_tokens BIGINT NOT NULL DEFAULT 0",
    ),
    oldest=2,
)

# for older code only, which lists the batches of one endpoint
_URLS: Final = Upgrade(
    ("CREATE INDEX roost_batches_urls ON roost_batches (tenant, url, created, id)",),
    oldest=2,
)

TABLES: Final = Tables(
    "batches", (_FIRST, _RUN_ORDER, _INDEXES, _TURNS, _EXPIRIES, _URLS), common_versions=(0, 0, 0, 1, 2)
)
