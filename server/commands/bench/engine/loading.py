"""Loads an engine as `roost serve` does, and describes it."""

import contextlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .....engine import EngineCore, ModelSource, Request, SamplingParams, load_engine, state_bytes
from ....assembly.service import LoadProgress, engine_config, exit_while_loading
from ....settings import Settings
from ....terminal.failure import INTERRUPTED_STATUS


def load(settings: Settings, source: ModelSource, max_queue: int, slots: int | None = None) -> EngineCore:
    """Returns an engine that is ready. It has no prefix cache, so that every prompt is prefilled.

    Args:
      settings: Settings of the engine.
      source: Model to load.
      max_queue: Number of requests that may wait.
      slots: Number of slots, if the settings leave it open.

    Raises:
      RoostError: A setting is wrong, or the model cannot be loaded.
    """
    config = replace(engine_config(settings), slots=settings.slots or slots, max_queue=max_queue, state_cache_gib=0)
    progress = LoadProgress()
    try:
        with _exit_on_interrupt(progress):
            return load_engine(source, config, progress)
    finally:
        progress.close()


def make_request(name: str, prompt: Sequence[int], max_tokens: int | None) -> Request:
    """Returns a greedy request that ends only at its limit; None sets no limit."""
    return Request(name, tuple(prompt), SamplingParams(max_tokens=max_tokens, temperature=0.0))


def model_facts(source: ModelSource, settings: Settings, core: EngineCore) -> Mapping[str, Any]:
    """Returns facts about the model and its slots."""
    dtype = source.config.dtype if settings.dtype == "auto" else settings.dtype
    config = source.with_kv_dtype(settings.kv_dtype).config
    return {
        "name": source.name,
        "parameters": source.config.num_parameters,
        "dtype": dtype,
        "quantize": settings.quantize or source.config.quantize,
        "kv_dtype": settings.kv_dtype,
        "slots": core.stats.slots,
        "state_bytes_per_slot": state_bytes(config, 4 if dtype == "float32" else 2),
    }


def settings_as_json(settings: Settings) -> Mapping[str, Any]:
    """Returns the settings that affect an engine; None slots means as many as memory permits."""
    return settings.model_dump(include={"model", "slots", "dtype", "quantize", "kv_dtype", "prefill_chunk", "seed"})


@contextlib.contextmanager
def _exit_on_interrupt(progress: LoadProgress) -> Iterator[None]:
    """Makes Ctrl-C exit the process immediately, since a compilation cannot be interrupted."""
    before = signal.signal(signal.SIGINT, lambda number, frame: exit_while_loading(progress, INTERRUPTED_STATUS))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
