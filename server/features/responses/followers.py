"""Number of streams of stored responses that each tenant follows."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ...errors import kinds
from ...errors.request_errors import ApiError
from ...tenancy.tenant import tenant

MAX_FOLLOWERS: Final = 256
"""Maximum number of streams of stored responses that a tenant follows at a time, on each replica."""


class Followers:
    """Counts the followers of each tenant."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Counts a follower of the current tenant until the end of the `with` block.

        Raises:
          ApiError: 429, the tenant has reached the maximum number of followers.
        """
        owner = tenant.get()
        if self._open[owner] >= MAX_FOLLOWERS:
            message = f"this API key follows {MAX_FOLLOWERS} streams of background responses, which is the limit"
            raise ApiError(kinds.TOO_MANY_FOLLOWERS, f"{message}: close some of them")
        self._open[owner] += 1
        try:
            yield
        finally:
            self._open[owner] -= 1
            if not self._open[owner]:
                del self._open[owner]
