"""Tables of responses, their logs and conversations, and the upgrades of these tables."""

from typing import Final

from ...database.schema import Tables, Upgrade
from .conversation_table import CONVERSATIONS, ITEMS
from .response_table import RESPONSES

_FIRST: Final = Upgrade(
    (
        *RESPONSES.statements,
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
        *CONVERSATIONS.statements,
        *ITEMS.statements,
    ),
    oldest=6,
)

TABLES: Final = Tables("responses", (_FIRST,), first=6)
