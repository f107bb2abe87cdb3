"""Opens a database with a feature's tables, which it creates or upgrades. Each feature's tables have a version.

Old and new replicas work on one database while a fleet is upgraded, and a fleet may be rolled back. Most upgrades
therefore only expand: they add tables, indexes, and columns that may be NULL or have a default, or drop indexes, and
statements name their columns. All other upgrades contract: they raise the oldest version of the code that may use the
database. Older code then refuses to start, and `Fence` stops its running replicas. A release may contract only what an
earlier release has expanded, so that consecutive releases run side by side.

Tables of this version or a later one are not changed, so that a role without the right to create tables can use them.
"""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Final

from .address import StoreAddress
from .database import Database, Pool, Transaction
from .dialects import Dialect, dialect_of
from .errors import StoreUnavailableError, StoreUnusableError
from .fence import Fence

_EXPANSIONS: Final = re.compile(
    r"""
    CREATE\ TABLE\ .* | CREATE\ INDEX\ .* | DROP\ INDEX\ .*
    | ALTER\ TABLE\ \w+\ ADD\ COLUMN\ (?!.*\b(UNIQUE|CHECK|REFERENCES|PRIMARY)\b)(?!.*\bNOT\ NULL(?!\ DEFAULT)).*
    """,
    re.VERBOSE,
)
"""Statements after which older code works as before."""

_OTHERS: Final = 0o077
"""Permission bits of users other than the owner."""

_logger: Final = logging.getLogger(__name__)


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

    def __post_init__(self) -> None:
        """Raises ValueError if an upgrade lets older code use tables that it changes, or excludes newer code."""
        for version, (before, step) in enumerate(pairwise(self.upgrades), self.first + 1):
            is_kept = step.oldest == before.oldest and step.only_expands
            if not is_kept and not before.oldest < step.oldest <= version:
                fix = f"keep oldest={before.oldest} and only expand, or raise it to {version}"
                raise ValueError(f"upgrade {version} of {self.feature} has oldest={step.oldest}: {fix}")


def upgrade(transaction: Transaction, dialect: Dialect, tables: Tables) -> None:
    """Upgrades tables to this code's version, unless they are newer. Call it in a transaction that writes.

    Raises:
      StoreOutdatedError: The tables exclude this code.
      StoreUnusableError: No upgrade leads on from the tables, or the database's role may not create or change tables.
    """
    _run(transaction, dialect.lock_schema)
    try:
        found = _found(transaction, tables.feature)
        if found is not None:
            version, oldest = found
            _check_not_older(tables, version)
            Fence(tables.feature, tables.version).check_oldest(version, oldest)
            if oldest < tables.upgrades[-1].oldest:
                _run(transaction, dialect.lock_fence)
        if found is None or found[0] < tables.version:
            _apply(transaction, tables, 0 if found is None else 1 + found[0] - tables.first)
    except dialect.denials as error:
        message = f"the database's role may not make or change the tables of {tables.feature}"
        unavailable = dialect.unavailable(error)
        reason = str(unavailable).rpartition(": ")[2]
        fix = "it needs USAGE and CREATE on the schema, and must own the tables that are there"
        raise StoreUnusableError(f"{message} ({reason}): {fix}") from None


def _check_not_older(tables: Tables, version: int) -> None:
    """Refuses tables from which no upgrade leads on.

    Raises:
      StoreUnusableError: The tables are older than the first upgrade's.
    """
    if version < tables.first:
        found = f"the store's tables of {tables.feature} have version {version}, and this server needs {tables.first}"
        way_out = "finish its work and save what you need with the server that made it, then start with another --store"
        raise StoreUnusableError(f"{found} or more: {way_out}")


def _apply(transaction: Transaction, tables: Tables, num_done: int) -> None:
    """Runs the upgrades after the first `num_done`."""
    for step in tables.upgrades[num_done:]:
        _run(transaction, step.statements)
    insert = "INSERT INTO roost_schemas (feature, version, oldest) VALUES (?, ?, ?)"
    transaction.execute("DELETE FROM roost_schemas WHERE feature = ?", tables.feature)
    transaction.execute(insert, tables.feature, tables.version, tables.upgrades[-1].oldest)


def _run(transaction: Transaction, statements: Sequence[str]) -> None:
    for statement in statements:
        transaction.execute(statement)


def _found(transaction: Transaction, feature: str) -> tuple[int, int] | None:
    """Returns the version of a feature's tables and the oldest version of the code that may use them; None without any.

    Servers from before 0.1.0 kept one version of all tables in `roost_schema`. It counts as 0.
    """
    if not _has_table(transaction, "roost_schemas"):
        transaction.execute(
            "CREATE TABLE roost_schemas (feature TEXT PRIMARY KEY, version INTEGER NOT NULL, oldest INTEGER NOT NULL)"
        )
    rows = transaction.rows("SELECT version, oldest FROM roost_schemas WHERE feature = ?", feature)
    if rows:
        return int(rows[0][0]), int(rows[0][1])
    return (0, 0) if _has_table(transaction, "roost_schema") else None


def _has_table(transaction: Transaction, name: str) -> bool:
    return bool(transaction.rows("SELECT {has_table}", name)[0][0])


def open_database(address: StoreAddress, tables: Tables, pool: Pool | None = None) -> Database:
    """Returns a database whose tables exist in this version or a later one, or are created once it can be reached.

    One in memory is created when it is first used.

    Args:
      pool: Threads and connections to this address; None makes some for these tables alone.

    Raises:
      StoreUnavailableError: SQLite's file cannot be used.
      StoreUnusableError: PostgreSQL's administrator must change something first.
    """
    pool = Pool(dialect_of(address)) if pool is None else pool
    dialect = pool.dialect
    fence = Fence(tables.feature, tables.version)
    database = Database(pool, partial(upgrade, dialect=dialect, tables=tables), tables.feature, fence)
    if address.kind == "memory":
        return database
    try:
        database.prepare_now()
    except StoreUnavailableError as error:
        if address.kind == "sqlite" or isinstance(error, StoreUnusableError):
            database.close()
            raise type(error)(f"--store {address}: {error}") from None
        _warn_of_absence(str(address))
    if address.kind == "sqlite":
        _warn_of_access(address.target)
    return database


@cache
def _warn_of_absence(address: str) -> None:
    """Warns once for each database that is unavailable at the start."""
    text = "--store %s: serving without it; requests that need it get 503 until it can be used, and it is tried again"
    _logger.warning(text, address)


@cache
def _warn_of_access(path: str) -> None:
    """Warns once for each file that other users of the machine may read or write."""
    mode = os.stat(path).st_mode & 0o777
    if mode & _OTHERS:
        text = "--store: other users of the machine may use %s (mode %03o): chmod 600 it and its -wal and -shm"
        _logger.warning(text, path, mode)
