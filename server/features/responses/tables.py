"""Tables of responses, their logs and conversations, and the upgrades of these tables."""

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
            log_bytes BIGINT NOT NULL,
            is_background INTEGER NOT NULL,
            is_streamed INTEGER NOT NULL,
            is_running INTEGER NOT NULL,
            model TEXT,
            request {bytes},
            prompt {bytes},
            conversation TEXT,
            input_items {bytes},
            owner TEXT,
            fence BIGINT NOT NULL,
            lease_until DOUBLE PRECISION NOT NULL,
            num_deaths INTEGER NOT NULL DEFAULT 0,
            num_lone_deaths INTEGER NOT NULL DEFAULT 0,
            is_alone INTEGER NOT NULL DEFAULT 0,
            engine TEXT,
            exact_fence BIGINT NOT NULL,
            checkpoint TEXT,
            checkpoint_tokens BIGINT,
            PRIMARY KEY (tenant, id)
        )
        """,
        "CREATE INDEX roost_responses_leases ON roost_responses (lease_until) WHERE is_running = 1",
        """
        CREATE INDEX roost_responses_running ON roost_responses (tenant, lease_until, num_bytes, log_bytes)
        WHERE is_running = 1
        """,
        "CREATE INDEX roost_responses_owners ON roost_responses (owner) WHERE is_running = 1",
        "CREATE INDEX roost_responses_ended ON roost_responses (tenant, created, num_bytes) WHERE is_running = 0",
        "CREATE INDEX roost_responses_old ON roost_responses (created) WHERE is_running = 0",
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
        """
        CREATE TABLE roost_conversations (
            tenant TEXT NOT NULL,
            id TEXT NOT NULL,
            created BIGINT NOT NULL,
            updated DOUBLE PRECISION NOT NULL,
            metadata {bytes} NOT NULL,
            num_items BIGINT NOT NULL,
            num_bytes BIGINT NOT NULL,
            holder TEXT,
            locked_until DOUBLE PRECISION NOT NULL,
            PRIMARY KEY (tenant, id)
        )
        """,
        "CREATE INDEX roost_conversations_age ON roost_conversations (updated)",
        "CREATE INDEX roost_conversations_sizes ON roost_conversations (tenant, updated, num_bytes)",
        """
        CREATE TABLE roost_conversation_items (
            tenant TEXT NOT NULL,
            conversation TEXT NOT NULL,
            id TEXT NOT NULL,
            position BIGINT NOT NULL,
            item {bytes} NOT NULL,
            PRIMARY KEY (tenant, conversation, id)
        )
        """,
        "CREATE INDEX roost_conversation_items_list ON roost_conversation_items (tenant, conversation, position)",
        "CREATE INDEX roost_conversation_items_ids ON roost_conversation_items (tenant, id)",
    ),
    oldest=6,
)

TABLES: Final = Tables("responses", (_FIRST,), first=6)
