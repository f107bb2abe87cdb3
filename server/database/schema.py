"""Versions of each feature's tables, which servers create and upgrade, and the fence that stops older servers.

Old and new replicas work on one database while a fleet is upgraded, and a fleet may be rolled back. Most upgrades
therefore only expand: they add tables, indexes, and columns that may be NULL or have a default, or drop indexes, and
statements name their columns. All other upgrades contract: they raise the oldest version of the code that may use the
database. Older code then refuses to start, and `Tables.fence` stops its running replicas. A release may contract only
what an earlier release has expanded, so that consecutive releases run side by side. `test_schema.py` checks the rule.

Tables of this version or a later one are not changed, so that a role without the right to create tables can use them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import StoreOutdatedError, StoreUnusableError


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Step from the previous version to this one.

    Attributes:
      statements: Statements in both dialects' words.
      oldest: Oldest version of the code that may use the database afterwards: the previous upgrade's value if this one
        only expands, or its own version if older code would do harm.
    """

    statements: Sequence[str]
    oldest: int


@dataclass(frozen=True, slots=True)
class Tables:
    """Tables of one feature.

    Attributes:
      feature: Name of the feature.
      upgrades: All upgrades, the first of which makes the tables.
      first: Version to which the first upgrade leads. Tables of lower versions are refused.
    """

    feature: str
    upgrades: Sequence[Upgrade]
    first: int = 1

    @property
    def version(self) -> int:
        """Version to which the last upgrade leads."""
        return self.first + len(self.upgrades) - 1

    @property
    def fence(self) -> str:
        """Statement with which each transaction begins: the tables' version, and the oldest version of the code that
        may use them.

        An upgrade that excludes older servers waits for all running transactions (`lock_fence` of a dialect), so that
        none of them uses the new tables.
        """
        return f"SELECT version, oldest FROM roost_schemas WHERE feature = '{self.feature}'"

    def check_fence(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Refuses tables that this server may not use.

        Args:
          rows: Rows that the fence has returned.

        Raises:
          StoreOutdatedError: This server is older than the oldest that may use the tables.
          StoreUnusableError: The tables are older than this server, for example after a restore.
        """
        for version, oldest in rows:
            self.check(version, oldest)
            if version < self.version:
                found = f"the store's tables of {self.feature} have gone back to version {version}"
                fix = "restart it, which upgrades them"
                raise StoreUnusableError(f"{found}, and this server needs {self.version}: {fix}")

    def check(self, version: int, oldest: int) -> None:
        """Refuses tables that need newer code, or from which no upgrade leads on.

        Raises:
          StoreOutdatedError: This server is older than the oldest that may use the tables.
          StoreUnusableError: The tables are older than the first upgrade's.
        """
        found = f"the store's tables of {self.feature} have version {version}"
        if oldest > self.version:
            way_back = "use the newer server, or restore a backup from before its upgrade"
            message = f"{found}, for servers that know {oldest} or more, and this server knows {self.version}"
            raise StoreOutdatedError(f"{message}: {way_back}")
        if version < self.first:
            way_out = "finish its work and save what you need with the server that made it"
            raise StoreUnusableError(
                f"{found}, and this server needs {self.first} or more: {way_out}, then start with another --store"
            )
