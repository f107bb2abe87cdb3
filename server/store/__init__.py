"""Responses in a database: what is stored, and which replica may continue an unfinished response.

`response_table.py` has all statements. A response that is being generated belongs to one replica at a time: its owner
holds a lease, which ends by the database's clock, and each new owner gets a higher fencing number, which all writes
check.
"""

from .address import StoreAddress
from .database import Database
from .errors import FencedError, StoreFullError, StoreUnavailableError
from .group_commit import Append, GroupCommit
from .records import Checkpoint, Claim, Job, Lease, LogEntry, ResponseRecord
from .stats import StoreStats

__all__ = [
    "Append",
    "Checkpoint",
    "Claim",
    "Database",
    "FencedError",
    "GroupCommit",
    "Job",
    "Lease",
    "LogEntry",
    "ResponseRecord",
    "StoreAddress",
    "StoreFullError",
    "StoreStats",
    "StoreUnavailableError",
]
