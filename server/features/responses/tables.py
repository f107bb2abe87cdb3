"""Tables of responses, their logs and conversations, and the upgrades of these tables."""

from typing import Final

from ...database.schema import Tables, Upgrade
from .conversation_table import CONVERSATIONS, ITEMS
from .event_table import EVENTS
from .response_table import RESPONSES, RUNNING

_FIRST: Final = Upgrade(
    (
        *RESPONSES.statements,
        *RUNNING.statements,
        *EVENTS.statements,
        *CONVERSATIONS.statements,
        *ITEMS.statements,
    ),
    oldest=6,
)

TABLES: Final = Tables("responses", (_FIRST,), first=6)
