"""Tables of files and batches, and the upgrades of these tables."""

from typing import Final

from ...database.schema import Tables, Upgrade
from .batch_table import BATCHES
from .file_table import FILES, LINES, ORDER
from .line_table import LINE_WORK

_FIRST: Final = Upgrade(
    (
        *FILES.statements,
        *LINES.statements,
        *ORDER.statements,
        *BATCHES.statements,
        *LINE_WORK.statements,
    ),
    oldest=7,
)

TABLES: Final = Tables("batches", (_FIRST,), first=7)
