"""Fair sharing of tokens between tenants."""

from collections.abc import Iterable


class FairShares:
    """Number of tokens that each tenant was served, on a common scale (start-time fair queueing).

    The scale's zero follows the tenant that is served. A tenant that comes back after a pause is not compensated for
    the pause, but is served before all tenants that have had more since.
    """

    def __init__(self) -> None:
        self._zero = 0
        self._used: dict[str, int] = {}

    def enter(self, tenant: str) -> None:
        """Adds a tenant that had no waiting request, or brings it up to the scale's zero."""
        self._used[tenant] = max(self._used.get(tenant, 0), self._zero)

    def first(self, tenants: Iterable[str]) -> str:
        """Returns the tenant that was served the fewest tokens; among equals, the first."""
        tenant = min(tenants, key=self.used)
        self._zero = max(self._zero, self._used[tenant])
        return tenant

    def used(self, tenant: str) -> int:
        """Returns the number of tokens of a tenant, on the common scale."""
        return self._used[tenant]

    def charge(self, tenant: str, tokens: int) -> None:
        """Charges a tenant for tokens; a negative number corrects an estimate."""
        self._used[tenant] = self._used.get(tenant, self._zero) + tokens
