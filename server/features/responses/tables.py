"""Tables of responses and their logs, and the upgrades of these tables."""

from typing import Final

from ...database.schema import Tables, Upgrade

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

TABLES: Final = Tables("responses", (_FIRST, _EXACT), common_versions=(0, 1, 2, 2, 2))
