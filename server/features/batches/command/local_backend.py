"""Batch backend of a model in this process: the application of `roost serve`, without a socket."""

import asyncio
from collections.abc import Callable
from typing import Final

from ....app import create_app
from ....client import Response
from ....http.in_process import post_json
from ....llm.local_model import LocalModel
from ....settings import Settings
from ....terminal.exits import INTERRUPTED_STATUS, CommandError
from ....terminal.text import print_status
from ..batch_lines import BatchLine

_TICK_S: Final = 0.1
"""Seconds between two looks for a signal while the model loads."""


class LocalBatch:
    """Runs lines on a model in this process, with twice as many lines open as there are slots.

    The constructor reads everything except the weights.

    Args:
      settings: Settings of the engine and the model.
      is_stopping: Returns whether the command was interrupted, which exits the process while the model loads.

    Raises:
      RoostError: A setting is wrong, or the model cannot be opened.
    """

    def __init__(self, settings: Settings, is_stopping: Callable[[], bool]) -> None:
        self._model = LocalModel(settings)
        self._engine = self._model.service.engine
        self._app = create_app(self._model.service, strict=settings.strict)
        self._is_stopping = is_stopping
        if self._model.source.is_random:
            print_status(f"{self._model.service.model.id} has random weights: its answers are noise")

    @property
    def concurrency(self) -> int:
        return 2 * self._engine.stats.slots

    async def start(self) -> None:
        loading = asyncio.ensure_future(self._model.start())
        while not (await asyncio.wait([loading], timeout=_TICK_S))[0]:
            if self._is_stopping():
                self._model.exit_if_loading(INTERRUPTED_STATUS)
        await loading

    async def send(self, line: BatchLine) -> Response:
        response = await post_json(self._app, line.url, line.body)
        if self._engine.error is not None:
            raise CommandError(f"the engine died ({self._engine.error}); run the same command again to continue")
        return Response(response.status, response.body, dict(response.headers.raw))

    async def close(self) -> None:
        await self._model.close()
