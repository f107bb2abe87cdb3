"""Periodic and final checkpoints of this replica's running responses."""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import batched
from typing import Final

from ....engine import AsyncEngine, EngineDeadError, UnknownRequestError
from ...database.errors import FencedError, StoreUnavailableError
from ...generation.service import engine_request_id
from .checkpoint_files import CheckpointFiles
from .response_store import ResponseLog, ResponseStore

_POLL_S: Final = 0.5
"""Seconds between two looks for responses without a recent checkpoint."""

_LOG_S: Final = 10.0
"""Seconds for which a checkpoint waits until its tokens are in the log."""

_AT_A_TIME: Final = 8
"""Number of checkpoints in memory during an evacuation."""

_READERS_S: Final = 0.05
"""Seconds in which open streams send their last tokens, so that no checkpoint is ahead of them."""

_logger: Final = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Checkpointer:
    """Takes checkpoints of responses that another replica could continue.

    Attributes:
      engine: Engine with checkpoints.
      responses: Responses of this replica.
      files: Files of checkpoints.
      interval_s: Minimum seconds between two checkpoints of a response.
      max_bytes_per_s: Maximum bytes per second of all periodic checkpoints together.
      evacuation_s: Maximum seconds for the checkpoints before the process exits.
    """

    engine: AsyncEngine
    responses: ResponseStore
    files: CheckpointFiles
    interval_s: float
    max_bytes_per_s: float
    evacuation_s: float
    _task: asyncio.Task[None] | None = field(default=None, init=False)

    def start(self) -> None:
        """Starts the checkpointer's task. The engine must be ready."""
        self._task = asyncio.create_task(self._run())

    async def evacuate(self) -> None:
        """Takes a last checkpoint of as many responses as the time limit permits. Generation has stopped afterwards."""
        if self._task is not None:
            self._task.cancel()
        if not (self._exact_logs() or self.responses.streams) or not self.engine.is_ready:
            return
        try:
            async with asyncio.timeout(self.evacuation_s):
                await self._save_all()
        except TimeoutError:
            text = "not all of %d responses were checkpointed before the end: see --evacuate-seconds"
            _logger.warning(text, len(self._exact_logs()))
        except EngineDeadError as error:
            _logger.warning("%s", error)

    async def _save_all(self) -> None:
        """Pauses the engine, and takes a checkpoint of every response, including open streams."""
        start = time.monotonic()
        await self.engine.pause()
        await asyncio.sleep(_READERS_S)
        await self.responses.hand_over_streams()
        logs, num_taken = self._exact_logs(), 0
        for some in batched(logs, _AT_A_TIME):
            num_taken += sum(map(bool, await asyncio.gather(*map(self._take, some))))
        seconds = time.monotonic() - start
        _logger.info("checkpointed %d of %d responses in %.1f s", num_taken, len(logs), seconds)

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
            except EngineDeadError:
                return
            except Exception:
                _logger.exception("checkpoints were not taken")
            await asyncio.sleep(_POLL_S)

    async def _look(self) -> None:
        """Takes checkpoints that are due, oldest first, within the limit of bytes per second."""
        for log in sorted(self._exact_logs(), key=lambda log: log.checkpointed_at):
            start = time.monotonic()
            if start - log.checkpointed_at < self.interval_s:
                return
            log.checkpointed_at = start
            num_bytes = await self._take(log)
            await asyncio.sleep(max(num_bytes / self.max_bytes_per_s - (time.monotonic() - start), 0))

    async def _take(self, log: ResponseLog) -> int:
        """Takes a checkpoint of a response, and returns the size of its file; 0 if it has none."""
        try:
            checkpoint = await self.engine.snapshot_request(engine_request_id(log.lease.id, 0))
        except UnknownRequestError:
            return 0  # it has no token yet, or has ended
        formats = self.engine.request_snapshot_format
        assert formats is not None
        name = f"{log.lease.id}-{log.lease.fence}-{checkpoint.num_tokens}"
        if not (num_bytes := await self.files.write(name, formats, checkpoint)):
            return 0
        try:
            with suppress(StoreUnavailableError, TimeoutError):  # it may still commit; if not, the file is swept
                async with asyncio.timeout(_LOG_S):
                    await log.set_checkpoint(name, checkpoint.num_tokens)
        except FencedError:
            await self.files.delete(name)
        return num_bytes

    def _exact_logs(self) -> Sequence[ResponseLog]:
        return [log for log in self.responses.logs.values() if log.engine is not None]
