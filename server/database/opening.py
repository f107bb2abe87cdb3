"""Opens the database of an address, with a feature's tables."""

from functools import partial

from .address import StoreAddress
from .database import Database
from .dialects import dialect_of
from .errors import StoreUnavailableError
from .schema import Tables, upgrade


def open_database(address: StoreAddress, tables: Tables) -> Database:
    """Returns a database whose tables exist and are of this version or a later one.

    Args:
      address: Address, which is not memory.

    Raises:
      StoreUnavailableError: The database cannot be used.
    """
    dialect = dialect_of(address)
    database = Database(dialect)
    try:
        database.run_now(partial(upgrade, dialect=dialect, tables=tables), writes=True)
    except StoreUnavailableError as error:
        raise StoreUnavailableError(f"--store {address}: {error}") from None
    return database
