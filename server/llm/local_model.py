"""A model in this process, with the same service as HTTP."""

import asyncio
import os
import sys
import weakref
from dataclasses import replace
from typing import Final

from ...engine import ConfigError, EngineDeadError, saved_state_format
from ..assembly.service import LoadProgress, engine_config, exit_while_loading, is_loading, make_engine, make_service
from ..model_hub import find_model
from ..observability.metrics import Metrics
from ..settings import Settings
from ..text.served_model import open_served_model

NUM_SLOTS: Final = 1
"""Number of slots of a command that makes one request at a time. Tests share the programs of servers with more."""

STOP_TIMEOUT_S: Final = 10.0
"""Maximum seconds for the engine to finish its current step."""


def one_request_at_a_time(settings: Settings) -> Settings:
    """Returns settings for a command, which makes one request at a time and waits for its end."""
    return settings.model_copy(update={"slots": NUM_SLOTS, "request_timeout": None})


class LocalModel:
    """A model in this process. The constructor reads everything except the weights, which `start` loads.

    All coroutines must run on one event loop. The engine is stopped at the latest when the object is collected, or
    when the process ends.

    Attributes:
      source: Checkpoint.
      service: Service that generates.

    Args:
      settings: Settings of the model and the engine.
      name: Name of the class that users know, for errors.

    Raises:
      RoostError: A setting is wrong, or the model cannot be opened.
    """

    def __init__(self, settings: Settings, name: str = "model") -> None:
        self._config, self.source = engine_config(settings), find_model(settings.model, settings.lora)
        if self._config.hosts is not None:
            raise ConfigError(settings.rename("coordinator: several hosts serve over HTTP only, with roost serve"))
        served = open_served_model(self.source, self._config, settings.served_model_name, settings.max_tokens_limit)
        self._progress = LoadProgress(self._config.compile_cache)
        self._engine = engine = make_engine(self.source, self._config, self._progress)
        service = make_service(settings, self._config, engine, served, Metrics(lambda: engine.stats))
        self.service = replace(service, limits=replace(service.limits, max_unread_bytes=sys.maxsize))
        self._name = name
        self._pid = os.getpid()
        self._loading: asyncio.Future[None] | None = None
        self._join = weakref.finalize(self, engine.join, STOP_TIMEOUT_S)

    def __repr__(self) -> str:
        """Returns the name, the model, and the number of its slots or why it has none."""
        slots = self._engine.stats.slots
        loaded = f"slots={slots}" if slots else "not loaded"
        return f"<{self._name} {self.service.model.id!r}, {loaded if self._join.alive else 'closed'}>"

    def check_usable(self) -> None:
        """Checks that the model can be used.

        Raises:
          EngineDeadError: The model was closed, or the process was forked.
        """
        if os.getpid() != self._pid:
            text = f"this {self._name} runs in the parent process: make one in each process, started by spawn"
            raise EngineDeadError(text)
        if not self._join.alive:
            raise self.closed_error()

    def closed_error(self) -> EngineDeadError:
        """Returns the error of a request of a closed model."""
        return EngineDeadError(f"this {self._name} was closed")

    def check_state(self, data: bytes) -> None:
        """Checks the file of a saved state without the weights.

        Raises:
          StateFileError: The file is broken, belongs to another model, or is not signed with the key.
        """
        saved_state_format(self.source, self._config).load(data, self._config.state_key)

    async def start(self) -> None:
        """Loads the weights and compiles, if that has not been done.

        Raises:
          RoostError: The weights do not match the model, or the model does not fit the memory.
          EngineDeadError: The model was closed, or the process was forked.
        """
        self.check_usable()
        if self._loading is None:
            self._engine.start()
            self._loading = asyncio.ensure_future(self._engine.wait_ready())
        await asyncio.shield(self._loading)

    def exit_if_loading(self, status: int) -> None:
        """Exits the process with `status` if the engine is loading, since loading cannot be interrupted otherwise."""
        if is_loading(self._engine):
            exit_while_loading(self._progress, status)

    async def stop(self) -> None:
        """Ends unfinished requests with an error and frees the model's memory. Callable more than once."""
        self._join.detach()
        await self._engine.stop(STOP_TIMEOUT_S)

    def join(self) -> None:
        """Stops the model from any thread; see `stop`."""
        self._join()
