"""PostgreSQL, also behind poolers. The primary of several hosts is found in spite of them.

libpq trusts the server status that is reported when a session begins. PgBouncer repeats an old report: after a
failover, libpq would take the standby for the primary, and refuse the primary. This module therefore queries each
server.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_attempts, conninfo_to_dict

from . import dialects
from .dialects import LEASE_S, STATEMENT_TIMEOUT_S, Connection, Cursor
from .errors import StoreFullError, StoreUnavailableError

_ABANDONED_S: Final = 5
"""Seconds after which PostgreSQL ends a transaction whose client has stopped in the middle of it."""

_PRIMARY: Final = ("read-write", "primary")
"""Values of `target_session_attrs` that only a primary has."""


class Postgresql:
    """PostgreSQL 13 or later, and poolers that give each transaction another session.

    Therefore statements are not prepared, locks do not outlast a transaction, and settings are set per transaction:
    poolers refuse settings of a session. See `Sqlite` for the attributes.
    """

    is_shared = True
    lock_schema: Sequence[str] = ("SET LOCAL statement_timeout = 0", "SELECT pg_advisory_xact_lock(7304201)")
    lock_fence: Sequence[str] = ("LOCK TABLE roost_schemas IN ACCESS EXCLUSIVE MODE",)  # all transactions read it first
    errors: tuple[type[Exception], ...] = (psycopg.Error,)
    denials: tuple[type[Exception], ...] = (psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidSchemaName)
    words: Mapping[str, str] = {
        "now": "(SELECT extract(epoch from clock_timestamp())::float8)",  # computed once, so that indexes can be used
        "skip_locked": "FOR UPDATE SKIP LOCKED",
        "lock": "FOR UPDATE",
        "bytes": "BYTEA",
        "has_table": "to_regclass(?) IS NOT NULL",
        "lock_name": "SELECT pg_advisory_xact_lock(7304202, hashtext(?))",
        "lease_s": str(LEASE_S),
    }
    _bugs = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.SyntaxError)

    def __init__(self, url: str) -> None:
        self._url = url

    def connect(self) -> Connection:
        """Returns a new connection to the first host, or to the primary if the URL requests it.

        A server that has disappeared is noticed after at most two keep-alives, since a commit that waits for a standby
        is not interrupted.

        Raises:
          psycopg.OperationalError: No host can be used.
        """
        parameters: dict[str, Any] = {
            **conninfo_to_dict(self._url),
            "autocommit": True,
            "prepare_threshold": None,
            "connect_timeout": dialects.CONNECT_TIMEOUT_S,
            "tcp_user_timeout": STATEMENT_TIMEOUT_S * 1000,
            "keepalives_idle": STATEMENT_TIMEOUT_S,
            "keepalives_interval": STATEMENT_TIMEOUT_S,
            "application_name": "roost",
        }
        if parameters.get("target_session_attrs") not in _PRIMARY:
            return psycopg.connect(**parameters)
        del parameters["target_session_attrs"]
        reasons: list[str] = []
        for each in conninfo_attempts(parameters):
            try:
                return _connect_to_primary(**each)
            except psycopg.Error as error:
                reasons.append(str(error))
        raise psycopg.OperationalError("; ".join(reasons))

    def begin(self, *, writes: bool) -> Sequence[str]:
        """Returns the statements that begin a transaction. The database ends the transaction if it takes too long."""
        return (
            "BEGIN",
            f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_S}s'",
            f"SET LOCAL idle_in_transaction_session_timeout = '{_ABANDONED_S}s'",
        )

    def run_all(self, connection: Any, statements: Sequence[str]) -> Cursor:
        """Sends statements without values as one message, and returns the last one's result."""
        results = connection.execute("; ".join(statements))
        while results.nextset():
            pass
        return results

    def interrupt(self, connection: Any) -> None:
        """Requests the server to end the statement that another thread runs on a connection."""
        connection.cancel_safe(timeout=dialects.CONNECT_TIMEOUT_S)

    def sql(self, text: str) -> str:
        """Returns a statement with PostgreSQL's words and psycopg's placeholders."""
        return text.format_map(self.words).replace("?", "%s")

    def unavailable(self, error: Exception) -> StoreUnavailableError | None:
        """Returns the store's error for one of `errors`; None for a bug. The driver's text may name host and user, and
        is only logged.

        Servers that are read-only, have lost a table or refuse a role raise an `InternalError` or a `ProgrammingError`.
        These errors end when the server is repaired. Only the driver itself raises a `ProgrammingError` without a code.
        """
        is_drivers = isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None
        if is_drivers or isinstance(error, self._bugs):
            return None
        kind = StoreFullError if isinstance(error, psycopg.errors.DiskFull) else StoreUnavailableError
        diagnosis = error.diag.message_primary if isinstance(error, psycopg.Error) else None  # not the statement's text
        return kind(f"the store's database cannot be used: {' '.join((diagnosis or str(error)).split())[:300]}")


def _connect_to_primary(**parameters: Any) -> psycopg.Connection[Any]:
    connection = psycopg.connect(**parameters)
    try:
        if connection.execute("SHOW transaction_read_only").fetchall() == [("off",)]:
            return connection
    except BaseException:
        connection.close()
        raise
    connection.close()
    raise psycopg.OperationalError(f"{parameters.get('host')} port {parameters.get('port')} is read-only")
