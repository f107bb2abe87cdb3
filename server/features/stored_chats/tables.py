"""Tables of stored chat completions, and the upgrades of these tables."""

from typing import Final

from ...database.schema import Tables, Upgrade

_FIRST: Final = Upgrade(
    (
        """
        CREATE TABLE roost_chats (
            tenant TEXT NOT NULL,
            id TEXT NOT NULL,
            created DOUBLE PRECISION NOT NULL,
            model {bytes} NOT NULL,
            completion {bytes} NOT NULL,
            messages {bytes} NOT NULL,
            metadata {bytes} NOT NULL,
            num_bytes BIGINT NOT NULL,
            PRIMARY KEY (tenant, id)
        )
        """,
        "CREATE INDEX roost_chats_list ON roost_chats (tenant, created, id)",
        "CREATE INDEX roost_chats_sizes ON roost_chats (tenant, num_bytes)",
        "CREATE INDEX roost_chats_age ON roost_chats (created)",
        # Names and values are bytes: text in a database cannot hold all that a client may send.
        """
        CREATE TABLE roost_chat_metadata (
            tenant TEXT NOT NULL,
            chat TEXT NOT NULL,
            name {bytes} NOT NULL,
            value {bytes} NOT NULL,
            PRIMARY KEY (tenant, chat, name)
        )
        """,
    ),
    oldest=1,
)

TABLES: Final = Tables("stored_chats", (_FIRST,))
