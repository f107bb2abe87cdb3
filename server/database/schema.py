"""Upgrades of tables, each feature's by its own version.

Old and new replicas work on one database while a fleet is upgraded. An upgrade therefore only adds tables, indexes and
columns that have a default, and statements name their columns. An upgrade after which older code would do harm raises
the oldest version that may still use the database; such code then refuses to start.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .database import Transaction
from .dialects import Dialect
from .errors import StoreUnavailableError


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Step from the version before to this one.

    Attributes:
      statements: Statements in both dialects' words.
      oldest: Oldest version of the code that may use the database afterwards.
    """

    statements: Sequence[str]
    oldest: int


@dataclass(frozen=True, slots=True)
class Tables:
    """Tables of one feature.

    Attributes:
      feature: Name of the feature.
      upgrades: All upgrades; the n-th one leads to version n.
      common_versions: Their version in a database of each common version from 0 on: one number was of all tables.
    """

    feature: str
    upgrades: Sequence[Upgrade]
    common_versions: Sequence[int] = ()


def upgrade(transaction: Transaction, dialect: Dialect, tables: Tables) -> None:
    """Brings tables to this code's version, unless they are newer. Call it in a transaction that writes.

    Raises:
      StoreUnavailableError: The tables belong to code that is too new for this one.
    """
    if dialect.lock_schema is not None:
        transaction.execute(dialect.lock_schema)
    version, oldest = _found(transaction, tables)
    known = len(tables.upgrades)
    if oldest > known:
        message = f"the store's tables of {tables.feature} have version {version}, and this server knows up to {known}"
        raise StoreUnavailableError(f"{message}: upgrade it")
    if version > known:
        return
    for step in tables.upgrades[version:]:
        for statement in step.statements:
            transaction.execute(statement)
    transaction.execute("DELETE FROM roost_schemas WHERE feature = ?", tables.feature)
    transaction.execute("INSERT INTO roost_schemas VALUES (?, ?, ?)", tables.feature, known, tables.upgrades[-1].oldest)


def _found(transaction: Transaction, tables: Tables) -> tuple[int, int]:
    """Returns the version of existing tables, and the oldest version of code that may use them; zeros without any."""
    transaction.execute(
        "CREATE TABLE IF NOT EXISTS roost_schemas (feature TEXT PRIMARY KEY, version INTEGER NOT NULL, "
        "oldest INTEGER NOT NULL)"
    )
    if rows := transaction.rows("SELECT version, oldest FROM roost_schemas WHERE feature = ?", tables.feature):
        return int(rows[0][0]), int(rows[0][1])
    transaction.execute("CREATE TABLE IF NOT EXISTS roost_schema (version INTEGER NOT NULL, oldest INTEGER NOT NULL)")
    common = transaction.rows("SELECT version FROM roost_schema")
    if not common:
        return 0, 0
    known = min(int(common[0][0]), len(tables.common_versions) - 1)
    return (tables.common_versions[known] if known >= 0 else 0), 0
