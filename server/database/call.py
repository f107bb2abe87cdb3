"""A call of a transaction, which is interrupted when its caller leaves."""

from contextlib import suppress
from threading import Event, Lock, Thread
from typing import Final

from .dialects import Connection, Dialect
from .errors import StoreUnavailableError

_REPEAT_S: Final = 0.1
"""Seconds between two interrupts of one transaction. An interrupt between two statements has no effect."""


class Call:
    """A transaction that runs on one thread, and whose caller may leave on another.

    Args:
      dialect: Kind of the database.

    Attributes:
      has_begun: Whether a thread is running or has run the transaction.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.has_begun = False
        self._dialect = dialect
        self._connection: Connection | None = None
        self._is_abandoned = False
        self._lock = Lock()
        self._ended = Event()

    def begin(self) -> None:
        """Marks the transaction as running on a thread.

        Raises:
          StoreUnavailableError: The caller has left.
        """
        with self._lock:
            self.check()
            self.has_begun = True

    def use(self, connection: Connection) -> None:
        """Sets the connection whose statements are interrupted when the caller leaves."""
        self._connection = connection
        self.check()

    def check(self) -> None:
        """Checks that the caller has not left.

        Raises:
          StoreUnavailableError: The caller has left.
        """
        if self._is_abandoned:
            raise StoreUnavailableError("the transaction's caller has left")

    def end(self) -> None:
        """Marks the transaction as committing or ended, so that it is not interrupted any more."""
        with self._lock:
            self._ended.set()

    def abandon(self) -> None:
        """Interrupts the transaction, or prevents its start. A commit is not interrupted."""
        with self._lock:
            if self._ended.is_set():
                return
            self._is_abandoned = True
            if self.has_begun:
                Thread(target=self._interrupt, name="store-interrupt", daemon=True).start()

    def _interrupt(self) -> None:
        while not self._ended.is_set():
            if self._connection is not None:
                with suppress(*self._dialect.errors):
                    self._dialect.interrupt(self._connection)
            self._ended.wait(_REPEAT_S)
