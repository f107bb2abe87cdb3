"""Limits on the number of lines that a replica claims, for all tenants and for each."""

from collections import Counter
from typing import Final

from .batch_records import LineClaim
from .tenant_turns import Places

_SHARE_CLAIMED: Final = 8
"""Reciprocal of the share of the room for lines that must be free before more are claimed. A claim takes the same
number of statements for any number of lines."""

_SHARE_RESERVED: Final = 8
"""Reciprocal of the share of the room for lines, and of their memory, that one of several tenants leaves to others."""

MAX_LONGEST: Final = 32
"""Number of lines of the maximum size that may be open. More may be open if they are shorter."""


class OpenLines:
    """Number and size of the lines that a replica has open, by tenant.

    Args:
      max_line_bytes: Maximum bytes of a line.
      is_shared: Whether there is more than one tenant.

    Attributes:
      held: Number of open lines of each tenant that has any.
      num_bytes: Bytes of all open lines.
    """

    def __init__(self, max_line_bytes: int, *, is_shared: bool) -> None:
        self.held = Counter[str]()
        self.num_bytes = 0
        self._max_line_bytes = max_line_bytes
        self._is_shared = is_shared
        self._bytes_of = Counter[str]()

    def add(self, claim: LineClaim) -> None:
        """Counts a line."""
        tenant, num_bytes = claim.lease.tenant, len(claim.data)
        self.held[tenant] += 1
        self._bytes_of[tenant] += num_bytes
        self.num_bytes += num_bytes

    def remove(self, claim: LineClaim) -> None:
        """Stops counting a line."""
        tenant, num_bytes = claim.lease.tenant, len(claim.data)
        self.held -= Counter({tenant: 1})
        self._bytes_of -= Counter({tenant: num_bytes})
        self.num_bytes -= num_bytes

    @property
    def num_fitting(self) -> int:
        """Number of further lines that fit in memory if all are of the maximum size."""
        return self._fitting(MAX_LONGEST, self.num_bytes)

    def wanted(self, room: int) -> Places:
        """Returns how many lines to claim.

        Tenants below an equal share of the room get their share even if other requests leave little room, or if too
        many lines are open because there was more room before.

        Args:
          room: Maximum number of lines to have open.
        """
        num_free = room - self.held.total()
        if num_free >= max(room // _SHARE_CLAIMED, 1):
            return self._places(num_free, room - room // _SHARE_RESERVED if self._is_shared else room)
        if not (room and self._is_shared):
            return Places(0, 0)
        share = max(room // (len(self.held) + 1), 1)
        taken = sum(min(count, share) for count in self.held.values())
        return self._places(max(room - taken, 0), share)

    def _places(self, num_free: int, max_of_tenant: int) -> Places:
        num_free, held = min(num_free, self.num_fitting), dict(self.held)
        if self._is_shared:
            max_longest = MAX_LONGEST - MAX_LONGEST // _SHARE_RESERVED
            num_free = min(num_free, max_longest)
            for tenant, num_bytes in self._bytes_of.items():  # those without memory count as full
                held[tenant] = max(held[tenant], max_of_tenant - self._fitting(max_longest, num_bytes))
        return Places(num_free, max_of_tenant, held)

    def _fitting(self, max_longest: int, num_bytes: int) -> int:
        return max(max_longest * self._max_line_bytes - num_bytes, 0) // self._max_line_bytes
