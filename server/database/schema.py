"""Upgrades of tables. Each feature's tables have a separate version.

Old and new replicas work on one database while a fleet is upgraded, and a fleet may be rolled back. Most upgrades
therefore only expand: they add tables, indexes, and columns that may be NULL or have a default, or drop indexes, and
statements name their columns. All other upgrades contract: they raise the oldest version of the code that may use the
database. Older code then refuses to start, and `Fence` stops its running replicas. A release may contract only what an
earlier release has expanded, so that consecutive releases run side by side.

Tables of this version or a later one are not changed, so that a role without the right to create tables can use them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from .database import Transaction
from .dialects import Dialect
from .errors import StoreUnusableError
from .fence import Fence

_EXPANSIONS: Final = re.compile(
    r"""
    CREATE\ TABLE\ .* | CREATE\ INDEX\ .* | DROP\ INDEX\ .*
    | ALTER\ TABLE\ \w+\ ADD\ COLUMN\ (?!.*\b(UNIQUE|CHECK|REFERENCES|PRIMARY)\b)(?!.*\bNOT\ NULL(?!\ DEFAULT)).*
    """,
    re.VERBOSE,
)
"""Statements after which older code works as before."""


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

    @property
    def only_expands(self) -> bool:
        """Whether older code works as before."""
        return all(_EXPANSIONS.fullmatch(" ".join(each.split())) for each in self.statements)


@dataclass(frozen=True, slots=True)
class Tables:
    """Tables of one feature.

    Attributes:
      feature: Name of the feature.
      upgrades: All upgrades; the n-th one leads to version n.
      common_versions: For each version of the former common schema, from 0, the version of these tables. That schema
        had one version for the tables of all features.
    """

    feature: str
    upgrades: Sequence[Upgrade]
    common_versions: Sequence[int] = ()

    def __post_init__(self) -> None:
        """Raises ValueError if an upgrade lets older code use tables that it changes, or excludes newer code."""
        for version, (before, step) in enumerate(pairwise(self.upgrades), 2):
            is_kept = step.oldest == before.oldest and step.only_expands
            if not is_kept and not before.oldest < step.oldest <= version:
                fix = f"keep oldest={before.oldest} and only expand, or raise it to {version}"
                raise ValueError(f"upgrade {version} of {self.feature} has oldest={step.oldest}: {fix}")


def upgrade(transaction: Transaction, dialect: Dialect, tables: Tables) -> None:
    """Upgrades tables to this code's version, unless they are newer. Call it in a transaction that writes.

    Raises:
      StoreOutdatedError: The tables exclude this code.
      StoreUnusableError: The database's role may not create or change tables.
    """
    _run(transaction, dialect.lock_schema)
    try:
        version, oldest = _found(transaction, tables)
        known = len(tables.upgrades)
        if oldest is not None:
            Fence(tables.feature, known).check_oldest(version, oldest)
            if oldest < tables.upgrades[-1].oldest:
                _run(transaction, dialect.lock_fence)
        if oldest is None or version < known:
            _apply(transaction, tables, version)
    except dialect.denials as error:
        message = f"the database's role may not make or change the tables of {tables.feature}"
        unavailable = dialect.unavailable(error)
        reason = str(unavailable).rpartition(": ")[2]
        fix = "it needs USAGE and CREATE on the schema, and must own the tables that are there"
        raise StoreUnusableError(f"{message} ({reason}): {fix}") from None


def _apply(transaction: Transaction, tables: Tables, version: int) -> None:
    """Runs the upgrades that follow a version."""
    known = len(tables.upgrades)
    for step in tables.upgrades[version:]:
        _run(transaction, step.statements)
    insert = "INSERT INTO roost_schemas (feature, version, oldest) VALUES (?, ?, ?)"
    transaction.execute("DELETE FROM roost_schemas WHERE feature = ?", tables.feature)
    transaction.execute(insert, tables.feature, known, tables.upgrades[-1].oldest)


def _run(transaction: Transaction, statements: Sequence[str]) -> None:
    for statement in statements:
        transaction.execute(statement)


def _found(transaction: Transaction, tables: Tables) -> tuple[int, int | None]:
    """Returns the version of existing tables, 0 without any, and the oldest version of the code that may use them.

    The latter is None if these tables have no separate version yet.
    """
    if not _has_table(transaction, "roost_schemas"):
        transaction.execute(
            "CREATE TABLE roost_schemas (feature TEXT PRIMARY KEY, version INTEGER NOT NULL, oldest INTEGER NOT NULL)"
        )
    if rows := transaction.rows("SELECT version, oldest FROM roost_schemas WHERE feature = ?", tables.feature):
        return int(rows[0][0]), int(rows[0][1])
    if not _has_table(transaction, "roost_schema"):
        transaction.execute("CREATE TABLE roost_schema (version INTEGER NOT NULL, oldest INTEGER NOT NULL)")
    common = transaction.rows("SELECT version FROM roost_schema")
    if not common:
        return 0, None
    known = min(int(common[0][0]), len(tables.common_versions) - 1)
    return (tables.common_versions[known] if known >= 0 else 0), None


def _has_table(transaction: Transaction, name: str) -> bool:
    return bool(transaction.rows("SELECT {has_table}", name)[0][0])
