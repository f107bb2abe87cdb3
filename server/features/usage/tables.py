"""Tables of usage, and the upgrades of these tables."""

from typing import Final

from ...database.schema import Tables, Upgrade

_FIRST: Final = Upgrade(
    (
        """
        CREATE TABLE roost_usage (
            day TEXT NOT NULL,
            tenant TEXT NOT NULL,
            num_requests BIGINT NOT NULL,
            prompt_tokens BIGINT NOT NULL,
            cached_tokens BIGINT NOT NULL,
            completion_tokens BIGINT NOT NULL,
            PRIMARY KEY (day, tenant)
        )
        """,
        # The last addition of each replica, so that one whose commit was not reported is not repeated.
        """
        CREATE TABLE roost_usage_additions (
            replica TEXT NOT NULL PRIMARY KEY,
            day TEXT NOT NULL,
            number BIGINT NOT NULL
        )
        """,
    ),
    oldest=1,
)

TABLES: Final = Tables("usage", (_FIRST,))
