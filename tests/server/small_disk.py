"""A database on a disk that is full while a test says so."""

from typing import Any

from roost.server.database.dialects import Sqlite


class SmallDisk(Sqlite):
    """A database whose file may not have more pages than `max_pages` while that is not 0."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.max_pages = 0

    def connect(self) -> Any:
        connection: Any = super().connect()
        disk = self

        class Limited:
            def execute(self, sql: str, values: Any = ()) -> Any:
                if sql.startswith("BEGIN"):
                    connection.execute(f"PRAGMA max_page_count = {disk.max_pages or 2**30}")
                return connection.execute(sql, values)

            def interrupt(self) -> None:
                connection.interrupt()

            def close(self) -> None:
                connection.close()

        return Limited()
