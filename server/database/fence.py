"""Fence of a feature's tables, by which an upgrade excludes older servers from the database, including running ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import StoreOutdatedError, StoreUnusableError


@dataclass(frozen=True, slots=True)
class Fence:
    """Rule by which a server may use a feature's tables.

    Each transaction begins with the query. An upgrade that excludes older servers waits for all running transactions
    (`Dialect.lock_fence`), so that none of them uses the new tables.

    Attributes:
      feature: Name of the feature.
      known: Version of the tables that this server knows.
    """

    feature: str
    known: int

    @property
    def query(self) -> str:
        """Statement that returns the tables' version, and the oldest version of the code that may use them."""
        return f"SELECT version, oldest FROM roost_schemas WHERE feature = '{self.feature}'"

    def check_oldest(self, version: int, oldest: int) -> None:
        """Refuses tables that need newer code.

        Raises:
          StoreOutdatedError: This server is older than the oldest that may use the tables.
        """
        if oldest > self.known:
            found = (
                f"the store's tables of {self.feature} have version {version}, for servers that know {oldest} or more"
            )
            way_back = "use the newer server, or restore a backup from before its upgrade"
            raise StoreOutdatedError(f"{found}, and this server knows {self.known}: {way_back}")

    def check(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Refuses tables that this server may not use.

        Args:
          rows: Rows that the query has returned.

        Raises:
          StoreOutdatedError: This server is older than the oldest that may use the tables.
          StoreUnusableError: The tables are older than this server, for example after a restore.
        """
        for version, oldest in rows:
            self.check_oldest(int(version), int(oldest))
            if int(version) < self.known:
                found = f"the store's tables of {self.feature} have gone back to version {version}"
                raise StoreUnusableError(
                    f"{found}, and this server needs {self.known}: restart it, which upgrades them"
                )
