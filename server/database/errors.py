"""Errors of the store."""

from ...engine import RoostError


class StoreUnavailableError(RoostError):
    """The database cannot be reached, does not respond in time, or refuses the write for now."""


class StoreFullError(StoreUnavailableError):
    """The database has no space left."""


class WriteTooLargeError(RoostError):
    """A write has more rows or bytes than one transaction stores."""


class StoreUnusableError(StoreUnavailableError):
    """The database's administrator must change something before this server can use its tables."""


class StoreClosedError(StoreUnavailableError):
    """This process has closed the database, and does not open it again."""


class StoreOutdatedError(StoreUnusableError, StoreClosedError):
    """A newer server has upgraded the tables, and this server may never use them again."""


class RefusedError(Exception):
    """A request or one of its writes was refused. Other writes of the transaction are committed."""


class FencedError(RoostError, RefusedError):
    """A write was refused, since the response was adopted, ended or deleted by another replica."""
