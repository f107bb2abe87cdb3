"""Admissions of a server: the budgets and the worker threads that all of its work shares."""

from typing import Final

from ..tenancy.tenant import tenant
from ..tenancy.tenant_locks import TenantLocks
from ..tenancy.workers import Workers
from .admission import Admission
from .byte_budget import ByteBudget
from .preemptible_admission import PreemptibleAdmission, PreemptibleWork

MAX_BODY_BYTES: Final = 4 * 2**20
"""Default maximum size of a body: a prompt of about a million tokens as text, or half a million token ids."""

MAX_KEPT_BYTES: Final = 2**30
"""Default bytes that all admissions may hold: parsed bodies, prompts, and the parts of them that responses repeat.

A parsed body may take thirty times its size; most take about their own size.
"""

_MAX_RAW_BODIES: Final = 32
"""Number of bodies of the maximum size that may be received at the same time."""

_LARGEST_REQUESTS: Final = 4
"""Number of requests that may each hold as much as the largest body can grow to."""

_GROWTH: Final = 64
"""Maximum ratio of a request's memory (parsed values and prompt token ids) to the size of its body."""


class Admissions:
    """Budgets and worker threads that all work of a server shares.

    Args:
      max_body_bytes: Maximum bytes of one body.
      max_kept_bytes: See the attribute; raised if one body could grow to more.
      tenants: Number of tenants.

    Attributes:
      max_body_bytes: Maximum bytes of one body.
      max_expanded_bytes: Maximum bytes of what one body names, such as a stored conversation: as for the body itself,
        but not less than by default.
      max_kept_bytes: Maximum bytes that all work may hold; preemptible work has a separate budget of the same size.
      workers: Threads for long work.
      preemptible: Open preemptible work.
    """

    def __init__(
        self, max_body_bytes: int = MAX_BODY_BYTES, max_kept_bytes: int = MAX_KEPT_BYTES, tenants: int = 1
    ) -> None:
        self.max_body_bytes = max_body_bytes
        self.max_expanded_bytes = max(MAX_BODY_BYTES, max_body_bytes)
        self.max_kept_bytes = max(max_kept_bytes, _LARGEST_REQUESTS * _GROWTH * max_body_bytes)
        self.workers = Workers(tenants)
        self._raw = ByteBudget(_MAX_RAW_BODIES * max_body_bytes, tenants)
        self._kept = ByteBudget(self.max_kept_bytes, tenants)
        self._kept_preemptible = ByteBudget(self.max_kept_bytes, tenants)  # or it would exhaust the others' budget
        self._turns = TenantLocks()
        self.preemptible = PreemptibleWork()

    def open(self) -> Admission:
        """Returns an admission for work of the current tenant. The caller must release it."""
        return Admission(self.workers, self._raw, self._kept, tenant.get())

    def open_preemptible(self, name: str = "", *, is_repeated: bool = False) -> Admission:
        """Returns an admission for preemptible work of the current tenant. The caller must settle and release it.

        Args:
          name: See `Admission`.
          is_repeated: See `Admission`.
        """
        budget, work = self._kept_preemptible, self.preemptible
        return PreemptibleAdmission(
            self.workers, budget, tenant.get(), self._turns, work, name, is_repeated=is_repeated
        )

    def unbounded(self) -> Admission:
        """Returns an admission for work of the process itself."""
        return Admission(self.workers, owner=tenant.get())
