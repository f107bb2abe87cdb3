"""Limits on the files and batches of a tenant, as sums over its files and its batches in progress.

Without API keys there is one tenant, and the limits apply to the whole server.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Final

from ...database.database import Transaction, placeholders

MAX_FILES: Final = 10_000
"""Maximum number of files of a tenant, including files that its batches in progress will create."""

MAX_BATCHES: Final = 1_000
"""Maximum number of batches in progress of a tenant."""

MAX_LINES: Final = 10_000_000
"""Maximum number of lines of a tenant's files, plus one line of output for each line of its batches in progress."""

FILES_OF_BATCH: Final = 2
"""Number of files that a batch creates: one of outputs and one of errors."""


@dataclass(frozen=True, slots=True)
class UsedQuota:
    """Resources that a tenant uses, and to which the limits apply.

    Attributes:
      num_bytes: Size of its files, and of the results of its batches in progress.
    """

    num_files: int = 0
    num_batches: int = 0
    num_lines: int = 0
    num_bytes: int = 0

    def __add__(self, more: "UsedQuota") -> "UsedQuota":
        return UsedQuota(*(own + other for own, other in zip(astuple(self), astuple(more), strict=True)))

    def excess(self, max_bytes: int) -> str | None:
        """Returns which limit is exceeded and how to get below it, as a message to the client; None if no limit is."""
        if self.num_files > MAX_FILES:
            return f"an API key may keep {MAX_FILES:,} files, two of each batch in progress included: delete some"
        if self.num_batches > MAX_BATCHES:
            return f"an API key may have {MAX_BATCHES:,} batches in progress: wait for some of them, or cancel some"
        if self.num_lines > MAX_LINES:
            return f"the files and batches of an API key may have {MAX_LINES:,} lines together: delete some files"
        return full(self.num_bytes, max_bytes) if self.num_bytes > max_bytes else None


NEW_FILE: Final = UsedQuota(num_files=1, num_bytes=1)
"""A file that is about to be uploaded."""


def new_batch(num_lines: int) -> UsedQuota:
    """Returns the usage that a batch with this number of lines adds. It is a minimum: the size of its output is
    unknown.
    """
    return UsedQuota(num_files=FILES_OF_BATCH, num_batches=1, num_lines=num_lines, num_bytes=1)


def full(num_bytes: int, max_bytes: int) -> str:
    """Returns the message about files that have reached the maximum number of bytes."""
    return (
        f"the files of this API key and the output of its batches take {num_bytes:,} bytes, and may take "
        f"{max_bytes:,} (--store-gib, or a share of 256 MiB without --store): delete some files"
    )


def usage(transaction: Transaction, tenant: str) -> UsedQuota:
    """Returns a tenant's usage. Running uploads count, and so do deleted files until they are removed."""
    ((num_files, file_lines, file_bytes),) = transaction.rows(
        """
        SELECT count(*), coalesce(sum(num_lines), 0), coalesce(sum(num_bytes), 0) FROM roost_files WHERE tenant = ?
        """,
        tenant,
    )
    ((num_batches, batch_lines, batch_bytes),) = transaction.rows(
        """
        SELECT count(*), coalesce(sum(num_lines), 0), coalesce(sum(output_bytes + error_bytes), 0)
        FROM roost_batches WHERE tenant = ? AND status = 'in_progress'
        """,
        tenant,
    )
    batches = UsedQuota(FILES_OF_BATCH * int(num_batches), int(num_batches), int(batch_lines), int(batch_bytes))
    return batches + UsedQuota(int(num_files), 0, int(file_lines), int(file_bytes))


def sizes(transaction: Transaction, tenants: Sequence[str]) -> dict[str, int]:
    """Returns, for each tenant, the bytes of its files and of the results of its batches in progress.

    Args:
      tenants: At least one tenant.
    """
    rows = transaction.rows(
        f"""
        SELECT column1,
            (SELECT coalesce(sum(num_bytes), 0) FROM roost_files WHERE tenant = column1)
            + (SELECT coalesce(sum(output_bytes + error_bytes), 0) FROM roost_batches
                WHERE tenant = column1 AND status = 'in_progress')
        FROM (VALUES {placeholders(len(tenants), 1)}) AS asked
        """,
        *tenants,
    )
    return {tenant: int(num_bytes) for tenant, num_bytes in rows}
