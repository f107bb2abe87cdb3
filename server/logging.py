"""Log lines for people, each with the request it belongs to. uvicorn's lines go the same way."""

import logging
import sys
from contextvars import ContextVar
from typing import Final

request_id: Final[ContextVar[str]] = ContextVar("request_id", default="-")
"""The id of the HTTP request on whose behalf this code runs."""

_FORMAT: Final = "%(asctime)s %(levelname)-7s %(request_id)s %(message)s"


def set_up_logging(level: int = logging.INFO) -> None:
    """Logs to stderr: everything of ours from `level` on, warnings of others."""
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%Y-%m-%d %H:%M:%S"))
    handler.addFilter(_add_request_id)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("roost").setLevel(level)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)


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
