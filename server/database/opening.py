"""Opens the database of an address, with a feature's tables."""

import logging
import os
from functools import cache, partial
from typing import Final

from .address import StoreAddress
from .database import Database, Pool
from .dialects import dialect_of
from .errors import StoreUnavailableError, StoreUnusableError
from .fence import Fence
from .schema import Tables, upgrade

_OTHERS: Final = 0o077
"""Permission bits of users other than the owner."""

_logger: Final = logging.getLogger(__name__)


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
