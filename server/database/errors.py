"""Errors of the store."""

from ...engine import RoostError


class StoreUnavailableError(RoostError):
    """The database cannot be reached, does not respond in time, or refuses the write for now."""


class StoreFullError(StoreUnavailableError):
    """The database has no room left."""


class FencedError(RoostError):
    """A write was refused, since the response was adopted, ended or deleted by another replica."""
