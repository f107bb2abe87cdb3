"""Audit log: one JSON line for each admin action, each reload of keys or certificates, and each rejected key."""

import hmac
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

from .logging import say

_MAX_LINES: Final = 10
"""Maximum lines about rejected keys per minute and address."""

_MAX_ADDRESSES: Final = 4096
"""Maximum number of addresses whose lines are counted apart in a minute. All others share one count."""

_MAX_PATH: Final = 200
"""Maximum characters of a path in a line."""

_SECRET: Final = secrets.token_bytes(32)
"""Key of the hashes of this process. Without it, a rejected key cannot be guessed from its hash."""


def audit(event: str, **fields: Any) -> None:
    """Writes a line of the audit log, independent of the log's format and level."""
    say(f"audit: {event}", fields={"logger": "roost.audit", "event": event, **fields}, as_json=True)


class RejectedKeys:
    """Writes a line for each request with an unknown key, as long as its address has had few in this minute.

    Args:
      clock: Monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._minute = 0
        self._lines = Counter[str]()

    def write(self, client: str, path: str, keys: Iterable[bytes]) -> None:
        """Writes the line of a request. Keys appear in it as hashes, which are the same until the process ends."""
        hashes = [hmac.digest(_SECRET, key, "sha256").hex()[:16] for key in keys if key]
        if hashes and self._may_write(client):
            audit("rejected_key", client=client, path=path[:_MAX_PATH], key_hashes=hashes)

    def _may_write(self, client: str) -> bool:
        minute = int(self._clock() // 60)
        if minute != self._minute:
            self._minute = minute
            self._lines.clear()
        counted = client if client in self._lines or len(self._lines) < _MAX_ADDRESSES else ""
        self._lines[counted] += 1
        return self._lines[counted] <= _MAX_LINES
