"""Summary of throughput in the log, for operators without Prometheus."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from ...engine import EngineStats

INTERVAL_S: Final = 10.0
"""Seconds between two summaries of a busy server."""

_logger = logging.getLogger(__name__)


class ThroughputLog:
    """Logs a line every `INTERVAL_S` while the engine is busy.

    Args:
      stats: Returns the current statistics of the engine.
    """

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats
        self._last = stats()

    async def run(self) -> None:
        """Logs until it is cancelled."""
        now = asyncio.get_running_loop().time
        while True:
            began = now()
            await asyncio.sleep(INTERVAL_S)
            self.report(now() - began)

    def report(self, seconds: float) -> None:
        """Logs the throughput since the last call, unless the engine was idle.

        Args:
          seconds: Time since the last call.
        """
        last, new = self._last, self._stats()
        self._last = new
        prompt = new.prompt_tokens - last.prompt_tokens
        generated = new.generated_tokens - last.generated_tokens
        cached = new.cache.hit_tokens - last.cache.hit_tokens
        if not prompt + generated + cached + new.num_running + new.num_waiting:
            return
        rates = {
            "prompt_tokens_per_s": round(prompt / seconds, 1),
            "cached_tokens_per_s": round(cached / seconds, 1),
            "generated_tokens_per_s": round(generated / seconds, 1),
        }
        fields = {**rates, "running": new.num_running, "waiting": new.num_waiting}
        text = " ".join(f"{name}={value}" for name, value in fields.items())
        _logger.info("throughput %s", text, extra={"fields": fields})
