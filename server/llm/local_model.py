"""A model in this process with the same service as HTTP, and its settings: all of `roost serve` except HTTP's."""

import asyncio
import os
import sys
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypedDict

from ...engine import ConfigError, EngineDeadError, Quantization
from ..assembly.service import LoadProgress, engine_config, exit_if_loading, make_engine, make_service
from ..model_hub import find_model
from ..observability.metrics import Metrics
from ..settings import Settings, SettingsError, load_settings
from ..settings.foreign_names import foreign_name_hint, is_neutral
from ..settings.sources import closest
from ..text.served_model import open_served_model
from .errors import shown

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

    Raises:
      RoostError: A setting is wrong, or the model cannot be opened.
    """

    def __init__(self, settings: Settings) -> None:
        config, self.source = engine_config(settings), find_model(settings.model, settings.lora)
        if config.hosts is not None:
            raise ConfigError(settings.rename("coordinator: several hosts serve over HTTP only, with roost serve"))
        served = open_served_model(self.source, config, settings.served_model_name, settings.max_tokens_limit)
        self._progress = LoadProgress()
        self._engine = engine = make_engine(self.source, config, self._progress)
        service = make_service(settings, config, engine, served, Metrics(lambda: engine.stats))
        self.service = replace(service, limits=replace(service.limits, max_unread_bytes=sys.maxsize))
        self._config, self._pid = config, os.getpid()
        self._loading: asyncio.Future[None] | None = None
        self._join = weakref.finalize(self, engine.join, STOP_TIMEOUT_S)

    def described(self, kind: str) -> str:
        """Returns the model's id, the dtype of its weights and its slots, whose number is known once it is loaded.

        Args:
          kind: Name of the class that shows itself so.
        """
        dtype = self.source.config.dtype if self._config.dtype == "auto" else self._config.dtype
        slots = self._engine.stats.slots or self._config.slots
        return f"{kind}({self.service.model.id!r}, dtype={dtype!r}, slots={slots})"

    def check_usable(self) -> None:
        """Checks that the model can be used.

        Raises:
          EngineDeadError: The model was closed, or the process was forked.
        """
        if os.getpid() != self._pid:
            raise EngineDeadError("the model is in the parent process: make one in each process, started by spawn")
        if not self._join.alive:
            raise EngineDeadError("the model was closed")

    async def start(self) -> None:
        """Loads the weights and compiles; see `AsyncLLM.start`."""
        self.check_usable()
        if self._loading is None:
            self._engine.start()
            self._loading = asyncio.ensure_future(self._engine.wait_ready())
        await asyncio.shield(self._loading)

    def exit_if_loading(self, status: int) -> None:
        """Exits the process with `status` if the engine is loading, since loading cannot be interrupted otherwise."""
        exit_if_loading(self._engine, self._progress, status)

    async def close(self) -> None:
        """Ends unfinished requests and frees the model's memory; see `AsyncLLM.close`."""
        self._join.detach()
        await self._engine.stop(STOP_TIMEOUT_S)

    def join(self) -> None:
        """Stops the engine, from any thread; see `close`."""
        self._join()


class ModelSettings(TypedDict, total=False):
    """Settings under the names of `roost serve`'s flags, with underscores; the settings reference describes them.

    A setting that is left out is read from its environment variable (`ROOST_SLOTS`), then from the config file, as by
    `roost serve`.
    """

    config: str | Path | None
    served_model_name: str | Sequence[str] | None
    dtype: Literal["auto", "float32", "bfloat16"]
    quantize: Quantization | None
    kv_dtype: Literal["int8"] | None
    speculative_config: Mapping[str, Any] | str | None
    seed: int
    without_kernels: Sequence[str]
    lora: str | Sequence[str]
    max_tokens_limit: int | None
    max_prompt_tokens: int | None
    slots: int | None
    max_queue: int
    prefill_chunk: int
    itl_target_ms: float | None
    mesh: str
    state_cache_gib: float | None
    state_cache_inexact: bool
    state_cache_dir: str | Path
    state_cache_dir_gib: float
    compile_cache: str | Path
    request_timeout: float | None
    state_key: str


_DEFAULTS: Final[Mapping[str, Any]] = {"max_queue": 4096, "request_timeout": None}
"""Settings whose defaults differ from HTTP's: a single program sends all requests and waits for them."""


def load_model_settings(
    model: str | Path, given: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})
) -> Settings:
    """Returns the settings of a model.

    Args:
      model: The model, as for `roost serve`.
      given: Settings from the caller, and keywords of vLLM that have no effect here.
      defaults: Further defaults that differ from HTTP's, of settings that neither the caller, nor the environment, nor
        the config file sets.

    Raises:
      ConfigError: A setting's name is unknown, or its value cannot be used.
    """
    if not isinstance(model, str | os.PathLike):
        raise ConfigError(f"model must be a name or the path of a directory, such as 'demo', got {shown(model)}")
    if not isinstance(config := given.get("config"), str | os.PathLike | None):
        raise ConfigError(f"config must be the path of a TOML file, got {shown(config)}")
    given = {name: value for name, value in given.items() if not is_vllm_neutral(name, value)}
    for name in given:
        if name not in ModelSettings.__annotations__:
            raise ConfigError(unknown_setting(name))
    try:
        settings = load_settings({**given, "model": os.fspath(model)}, flag_label=str)
    except SettingsError as error:
        raise ConfigError(str(error)) from None
    defaults = {**_DEFAULTS, **defaults}
    unset = {name: value for name, value in defaults.items() if name not in settings.model_fields_set}
    return settings.model_copy(update=unset)


def is_vllm_neutral(name: str, value: Any) -> bool:
    """Returns whether a keyword of vLLM has no effect here, so that scripts work unchanged."""
    return name not in ModelSettings.__annotations__ and is_neutral(name, value)


def unknown_setting(name: str) -> str:
    """Returns the error message about an unknown setting."""
    if (hint := foreign_name_hint(name)) is not None:
        return hint
    guess = closest(name, ModelSettings.__annotations__)
    return f"there is no setting {name!r}" + ("" if guess is None else f"; did you mean {guess}?")


_RENAMED: Final = {
    "kv_cache_dtype": "kv_dtype",
    "max_num_batched_tokens": "prefill_chunk",
    "max_num_seqs": "slots",
    "quantization": "quantize",
}
"""Settings of Roost by vLLM's names, where their values are the same."""

_AXES: Final = {"data_parallel_size": "data", "tensor_parallel_size": "model"}
"""Axes of the mesh by vLLM's names of their sizes."""

_Settings: Final = make_dataclass(
    "_Settings", [("model", str, "demo"), *((name, Any, None) for name in ModelSettings.__annotations__)]
)


class EngineArgs(_Settings):  # type: ignore[misc, valid-type]  # the fields of `ModelSettings`
    """Settings of a model from vLLM's keywords: `LLM(**dataclasses.asdict(EngineArgs(model="demo", max_num_seqs=8)))`.

    Attributes are the settings of Roost; a value of None selects the setting's default.

    Args:
      model: The model, as for `LLM`.
      given: Keywords of vLLM's class of this name, or settings of Roost.

    Raises:
      ConfigError: A keyword is unknown, or its value is not supported.
    """

    def __init__(self, model: str = "demo", **given: Any) -> None:
        super().__init__(model, **_settings(given))


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    sizes = {axis: given.get(name) or 1 for name, axis in _AXES.items()}
    if any(size != 1 for size in sizes.values()):
        found["mesh"] = ",".join(f"{axis}={size}" for axis, size in sizes.items())
    for name, value in given.items():
        if name in _AXES or is_vllm_neutral(name, value):
            continue
        if name == "max_model_len":  # vLLM's limit of prompt and output together
            found |= {"max_prompt_tokens": value, "max_tokens_limit": value}
        elif (own := _RENAMED.get(name, name)) in ModelSettings.__annotations__:
            found[own] = value
        else:
            raise ConfigError(unknown_setting(name))
    return found
