"""Log lines for people or for programs, each with the request it belongs to. uvicorn's lines go the same way."""

import json
import logging
import sys
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

from ..tenancy.tenant import tenant

request_id: Final[ContextVar[str]] = ContextVar("request_id", default="-")
"""The id of the HTTP request on whose behalf this code runs."""

error_reason: Final[ContextVar[list[str]]] = ContextVar("error_reason")
"""Why the HTTP request on whose behalf this code runs is refused, for its line in the log; the last entry counts."""

_FORMAT: Final = "%(asctime)s %(levelname)-7s %(request_id)s %(message)s"


ACCESS_LOGGER: Final = "roost.server.middleware.request_id"
"""Name of the logger that has a line for each HTTP request."""


def set_up_logging(level: int = logging.INFO, *, as_json: bool = False, access_log: bool = True) -> None:
    """Logs to stderr: everything of ours from `level` on, warnings of others.

    Args:
      as_json: an object in each line, for programs that collect them.
      access_log: whether each HTTP request has a line.
    """
    handler = _StderrHandler()
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter(_FORMAT, datefmt="%Y-%m-%d %H:%M:%S"))
    handler.addFilter(_add_request_id)
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
    logging.getLogger("roost").setLevel(level)
    logging.getLogger(ACCESS_LOGGER).setLevel(logging.NOTSET if access_log else logging.WARNING)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def log_what_python_prints() -> None:
    """Turns Python's warnings and the traces of uncaught exceptions into log lines."""
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda uncaught: _log_uncaught(
        uncaught.exc_type, uncaught.exc_value or uncaught.exc_type(), uncaught.exc_traceback
    )


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("roost").critical("uncaught %s", kind.__name__, exc_info=(kind, error, trace))


def is_json() -> bool:
    """Whether log lines are objects."""
    return any(isinstance(handler.formatter, _JsonFormatter) for handler in logging.getLogger().handlers)


def say(
    text: str,
    level: int = logging.INFO,
    fields: Mapping[str, Any] | None = None,
    *,
    as_json: bool | None = None,
) -> None:
    """Writes a line for the person who runs a command to stderr, whatever the log level is.

    Args:
      fields: what the line says in a form for programs; only an object has them.
      as_json: an object, as log lines are; None writes one where log lines are objects.
    """
    if is_json() if as_json is None else as_json:
        record = logging.LogRecord("roost", level, "", 0, "%s", (text,), None)
        record.fields = fields or {}
        text = _JsonFormatter().format(record)
    print(f"{text}\n", end="", file=sys.stderr, flush=True)


class _TextFormatter(logging.Formatter):
    """One line for each record. Lines of a traceback begin with a bar, so that no text within an exception looks like a
    record; control characters are written as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
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
    """Besides what every line has, the `fields` that whoever logs gives as `extra`."""

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
        if record.stack_info:
            content["stack"] = record.stack_info
        return json.dumps(content, default=str)


class _StderrHandler(logging.Handler):
    """Looks `sys.stderr` up for every line, as a progress bar replaces it while it is on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(f"{self.format(record)}\n", end="", file=sys.stderr, flush=True)  # one write: threads don't mix lines
        except Exception:  # as in every handler: a line that is lost must not take a request with it
            self.handleError(record)


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True
