"""Counts of the store for metrics."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class StoreStats:
    """Counts of one replica, and the counts of the database from the last look.

    Attributes:
      ended: Number of background responses that this replica ended, by status.
      adoptions: Number of responses that this replica adopted.
      handovers: Number of this replica's streams that were left to others.
      refusals: Number of this replica's writes that were refused because of their fencing number.
      running: Number of running responses of all replicas.
      orphaned: Number of running responses without a live owner.
      abandoned: Number of running responses that have had no live owner for too long.
      unattended: Number of running responses that this replica owns in the database, but that none of its tasks runs.
      checkpoints: Number of checkpoint files that this replica wrote.
      checkpoint_bytes: Bytes of these files.
      checkpoint_seconds: Seconds spent on writing them.
      checkpoint_errors: Number of checkpoint files that could not be written or read.
      evacuation_seconds: Estimated seconds for checkpoints of all slots; None without a folder for them.
    """

    ended: Counter[str] = field(default_factory=Counter)
    adoptions: int = 0
    handovers: int = 0
    refusals: int = 0
    running: int = 0
    orphaned: int = 0
    abandoned: int = 0
    unattended: int = 0
    checkpoints: int = 0
    checkpoint_bytes: int = 0
    checkpoint_seconds: float = 0.0
    checkpoint_errors: int = 0
    evacuation_seconds: float | None = None
