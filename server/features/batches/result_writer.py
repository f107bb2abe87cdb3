"""Stores the results of lines of batches, many lines at a time."""

import asyncio
import logging
from collections.abc import Mapping
from itertools import islice
from typing import Final

from ...database.errors import StoreUnavailableError
from .batch_records import LineLease, LineResult
from .batch_store import BatchStore

_STORE_S: Final = 0.05
"""Minimum seconds between two transactions that store results."""

_MAX_STORED: Final = 256
"""Maximum number of lines whose results are stored in one transaction."""

_logger: Final = logging.getLogger(__name__)


class ResultWriter:
    """Results of lines that are not stored yet.

    Args:
      batches: Store of the batches.
    """

    def __init__(self, batches: BatchStore) -> None:
        self._batches = batches
        self._results: dict[LineLease, LineResult] = {}
        self._has_results = asyncio.Event()
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def __contains__(self, lease: object) -> bool:
        return lease in self._results

    def add(self, lease: LineLease, result: LineResult) -> None:
        """Queues the result of a line, which is stored later."""
        self._results[lease] = result
        self._has_results.set()
        self._is_empty.clear()

    async def run(self) -> None:
        """Stores results until it is cancelled."""
        while True:
            await self._has_results.wait()
            await self.flush()
            await asyncio.sleep(_STORE_S)

    async def flush(self) -> None:
        """Stores all results."""
        self._has_results.clear()
        while some := dict(islice(self._results.items(), _MAX_STORED)):
            await self._store(some)
            for lease in some:
                del self._results[lease]
        self._is_empty.set()

    async def wait_empty(self) -> None:
        """Waits until all results are stored."""
        await self._is_empty.wait()

    async def _store(self, results: Mapping[LineLease, LineResult]) -> None:
        try:
            await self._batches.end(results)
        except StoreUnavailableError as error:
            _logger.warning("%d lines of batches are left to other replicas: %s", len(results), error)
        except Exception:
            _logger.exception("%d lines of batches were not ended", len(results))
