"""OpenAI's files and batches: `/v1/files` and `/v1/batches`."""

from typing import Final

from ...feature import Feature
from ...observability.request_metrics import RowCollector
from . import file_routes, routes
from .batch_table import TABLES, BatchTotals
from .collector import batch_rows
from .open_batches import open_batches

FEATURE: Final = Feature(
    "batches",
    routers=(file_routes.router, routes.router),
    unlimited_paths=frozenset({file_routes.PATH}),
    path_hints={
        "use {root}/v1/batches": "/v1/messages/batches",
        "use {root}/v1/files, which takes a file of any size in one request": "/v1/uploads",
    },
    tables=TABLES,
    open=open_batches,
    unused_collectors=lambda: (RowCollector(lambda: batch_rows(BatchTotals(), 0, 0)),),
)
