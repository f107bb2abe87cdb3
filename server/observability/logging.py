"""Log lines as text or JSON, each with the id of its request, including uvicorn's lines; and the audit log.

The audit log has a JSON line for each admin action, each reload of keys or certificates, and each rejected key.
python-json-logger could only replace `_JsonFormatter`. It has no text format that is safe against forged lines.
"""

import hmac
import json
import logging
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

from ..tenants import tenant

request_id: Final[ContextVar[str]] = ContextVar("request_id", default="-")
"""Id of the current HTTP request."""

error_reason: Final[ContextVar[list[str]]] = ContextVar("error_reason")
"""Reasons for which the current HTTP request is refused, for the access log; the last one counts."""

_FORMAT: Final = "%(asctime)s %(levelname)-7s %(request_id)s %(message)s"

ACCESS_LOGGER: Final = "roost.server.http.middleware"
"""Name of the access log, which has a line for each HTTP request."""


def set_up_logging(level: int = logging.INFO, *, as_json: bool = False, access_log: bool = True) -> None:
    """Configures logging to stderr: Roost's records at `level` or above, and warnings of other libraries.

    Args:
      level: Lowest level of Roost's records.
      as_json: Whether each line is a JSON object.
      access_log: Whether each HTTP request has a line.
    """
    handler = _StderrHandler()
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter(_FORMAT, datefmt="%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
    logging.getLogger("roost").setLevel(level)
    logging.getLogger(ACCESS_LOGGER).setLevel(logging.NOTSET if access_log else logging.WARNING)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def log_warnings_and_uncaught() -> None:
    """Logs Python's warnings and uncaught exceptions, which Python would print."""
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda uncaught: _log_uncaught(
        uncaught.exc_type, uncaught.exc_value or uncaught.exc_type(), uncaught.exc_traceback
    )


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("roost").critical("uncaught %s", kind.__name__, exc_info=(kind, error, trace))


def is_json() -> bool:
    """Returns whether log lines are JSON objects."""
    return any(isinstance(handler.formatter, _JsonFormatter) for handler in logging.getLogger().handlers)


def say(
    text: str,
    level: int = logging.INFO,
    fields: Mapping[str, Any] | None = None,
    *,
    as_json: bool | None = None,
) -> None:
    """Prints a line to stderr for the user of a command, independent of the log level.

    Args:
      text: The line.
      level: Level of the line as a JSON object.
      fields: Further fields of the line as a JSON object.
      as_json: Whether the line is a JSON object; None follows the log's format.
    """
    if is_json() if as_json is None else as_json:
        record = logging.LogRecord("roost", level, "", 0, "%s", (text,), None)
        record.fields = fields or {}
        text = _JsonFormatter().format(record)
    with suppress(OSError):  # a terminal that was closed must not keep the server from draining
        print(f"{text}\n", end="", file=sys.stderr, flush=True)


class _TextFormatter(logging.Formatter):
    """Formats a record as one line, with control characters escaped.

    Lines of a traceback start with a bar, so that no text in an exception looks like a record.
    """

    def format(self, record: logging.LogRecord) -> str:
        record.message, record.request_id = record.getMessage(), request_id.get()
        record.asctime = self.formatTime(record, self.datefmt)
        lines = [_printable(self.formatMessage(record))]
        if record.exc_info:
            lines += (f"| {_printable(line)}" for line in self.formatException(record.exc_info).splitlines())
        return "\n".join(lines)


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class _JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object, with the `fields` passed in `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        content = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": request_id.get(),
            "tenant": tenant.get(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str)


class _StderrHandler(logging.Handler):
    """Writes to the current `sys.stderr`, which a progress bar replaces while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(f"{self.format(record)}\n", end="", file=sys.stderr, flush=True)  # one write per line
        except Exception:  # as in every handler: a lost line must not fail a request
            self.handleError(record)


_MAX_LINES: Final = 10
"""Maximum lines about rejected keys per minute and address."""

_MAX_SUBJECTS: Final = 4096
"""Maximum number of subjects whose lines are counted apart in a minute. All others share one count."""

_MAX_PATH: Final = 200
"""Maximum characters of a path in a line."""

_SECRET: Final = secrets.token_bytes(32)
"""Key of the hashes of this process. Without it, a rejected key cannot be guessed from its hash."""


def audit(event: str, **fields: Any) -> None:
    """Writes a line of the audit log, independent of the log's format and level."""
    say(f"audit: {event}", fields={"logger": "roost.audit", "event": event, **fields}, as_json=True)


class LinesPerMinute:
    """Limits log lines about what clients send, for each address or other subject.

    Args:
      max_lines: Maximum lines of a subject in a minute.
      clock: Monotonic clock in seconds.
    """

    def __init__(self, max_lines: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_lines = max_lines
        self._clock = clock
        self._minute = 0
        self._lines = Counter[str]()

    def may_write(self, subject: str) -> bool:
        """Returns whether a line about a subject may be written now, and counts it."""
        minute = int(self._clock() // 60)
        if minute != self._minute:
            self._minute = minute
            self._lines.clear()
        counted = subject if subject in self._lines or len(self._lines) < _MAX_SUBJECTS else ""
        self._lines[counted] += 1
        return self._lines[counted] <= self._max_lines


class RejectedKeys:
    """Writes a line for each request with an unknown key, as long as its address has had few in this minute.

    Args:
      clock: Monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines = LinesPerMinute(_MAX_LINES, clock)

    def write(self, client: str, path: str, keys: Iterable[bytes]) -> None:
        """Writes the line of a request. Keys appear in it as hashes, which are the same until the process ends."""
        hashes = [hmac.digest(_SECRET, key, "sha256").hex()[:16] for key in keys if key]
        if hashes and self._lines.may_write(client):
            audit("rejected_key", client=client, path=path[:_MAX_PATH], key_hashes=hashes)
