"""Tables of toys."""

from typing import Final

from ...database.schema import Tables, Upgrade

TABLES: Final = Tables(
    "toy",
    (
        Upgrade(("CREATE TABLE roost_toys (name TEXT NOT NULL)",), oldest=1),
        Upgrade(("ALTER TABLE roost_toys ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'",), oldest=1),
    ),
)
