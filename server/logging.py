"""Log lines for people or for programs, each with the request it belongs to. uvicorn's lines go the same way."""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final

from .tenant import tenant

request_id: Final[ContextVar[str]] = ContextVar("request_id", default="-")
"""The id of the HTTP request on whose behalf this code runs."""

_FORMAT: Final = "%(asctime)s %(levelname)-7s %(request_id)s %(message)s"


def set_up_logging(level: int = logging.INFO, *, as_json: bool = False) -> None:
    """Logs to stderr: everything of ours from `level` on, warnings of others.

    Args:
      as_json: an object in each line, for programs that collect them.
    """
    handler = _StderrHandler()
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter(_FORMAT, datefmt="%Y-%m-%d %H:%M:%S"))
    handler.addFilter(_add_request_id)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("roost").setLevel(level)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)


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
        return json.dumps(content)


class _StderrHandler(logging.Handler):
    """Looks `sys.stderr` up for every line, as a progress bar replaces it while it is on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:  # as in every handler: a line that is lost must not take a request with it
            self.handleError(record)


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True
