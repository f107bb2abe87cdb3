"""Token ids in, token ids out: the door of the engine. Nothing here knows text or HTTP."""

from collections.abc import Callable

from .async_engine import AsyncEngine
from .checkpoint.conversion import convert
from .checkpoint.source import ModelSource, open_model
from .core.config import MAX_TOKENS, PREFILL_BLOCK, STEP_TOKEN_BOUNDS, CacheStats, EngineConfig, EngineStats
from .core.errors import (
    CheckpointError,
    ConfigError,
    ConstraintError,
    EngineDeadError,
    NumericError,
    ParameterError,
    QueueFullError,
    QueueTimeoutError,
    RequestTimeoutError,
    RoostError,
    StateFileError,
    UnknownRequestError,
)
from .core.mailbox import Mailbox
from .core.mesh import HostGroup, MeshShape
from .core.output_constraint import Constraint, TokenMask, mask_of_ids, words_of_mask
from .core.request import FinishReason, Request, TokenLogprobs, TokenOutput
from .core.sampling_limits import MAX_BIASES, MAX_LOGPROBS, MAX_STOP_IDS
from .core.sampling_params import SAMPLING_FIELDS, SamplingParams
from .core.snapshot import Snapshot
from .core.tenant_store import TenantStore
from .core.units import shown_bytes
from .engine_core import EngineCore
from .model.config import ModelConfig
from .platform import DeviceFacts, device_facts, numerics
from .prefix_cache.cache import PrefixCache
from .prefix_cache.disk import DiskTier
from .prefix_cache.saved_state import SavedState, SavedStateFormat
from .roofline import CPU, DEVICES, Roofline, Setup, compute_roofline, find_device, setups_that_fit
from .scheduling.scheduler import Scheduler
from .worker.executor import Executor, Progress
from .worker.profiling import record_profile
from .worker.runner import ModelRunner

__all__ = [
    "CPU",
    "DEVICES",
    "MAX_BIASES",
    "MAX_LOGPROBS",
    "MAX_STOP_IDS",
    "MAX_TOKENS",
    "PREFILL_BLOCK",
    "SAMPLING_FIELDS",
    "STEP_TOKEN_BOUNDS",
    "AsyncEngine",
    "CacheStats",
    "CheckpointError",
    "ConfigError",
    "Constraint",
    "ConstraintError",
    "DeviceFacts",
    "EngineConfig",
    "EngineCore",
    "EngineDeadError",
    "EngineStats",
    "FinishReason",
    "HostGroup",
    "Mailbox",
    "MeshShape",
    "ModelConfig",
    "ModelSource",
    "NumericError",
    "ParameterError",
    "Progress",
    "QueueFullError",
    "QueueTimeoutError",
    "Request",
    "RequestTimeoutError",
    "Roofline",
    "RoostError",
    "SamplingParams",
    "SavedState",
    "SavedStateFormat",
    "Setup",
    "Snapshot",
    "StateFileError",
    "TenantStore",
    "TokenLogprobs",
    "TokenMask",
    "TokenOutput",
    "UnknownRequestError",
    "compute_roofline",
    "convert",
    "device_facts",
    "find_device",
    "follow",
    "load_engine",
    "mask_of_ids",
    "open_model",
    "record_profile",
    "setups_that_fit",
    "shown_bytes",
    "words_of_mask",
]


def follow(
    source: ModelSource, config: EngineConfig, on_loss: Callable[[], None], progress: Progress | None = None
) -> None:
    """Serves as one of several hosts that do what the leader does, until that ends.

    Args:
      source, config, progress: as the leader has them.
      on_loss: called, by another thread, where the leader is gone.

    Raises:
      CheckpointError: the weights do not fit the model.
      ConfigError: the slots do not fit into memory, or the hosts do not find each other.
      EngineDeadError: the leader is gone.
    """
    Executor(source, config, progress).follow(on_loss)


def load_engine(source: ModelSource, config: EngineConfig, progress: Progress | None = None) -> EngineCore:
    """Loads the weights, compiles every shape and allocates every slot; slow.

    Raises:
      CheckpointError: the weights do not fit the model.
      ConfigError: the slots do not fit into memory.
    """
    runner = ModelRunner(source, config, progress)
    cache = _prefix_cache(config, runner) if runner.state_cache_bytes else None
    scheduler = Scheduler(
        runner.slots,
        config.max_queue,
        runner.limits,
        config.max_queue_tokens,
        config.tenants,
        reserved_slots=_reserved_slots(config, runner.slots),
        cache=cache,
    )
    return EngineCore(scheduler, runner, runner.state_format)


def _reserved_slots(config: EngineConfig, slots: int) -> int:
    if config.reserved_slots is not None:
        return config.reserved_slots
    return 1 if config.tenants > 1 and slots > 1 else 0


def _prefix_cache(config: EngineConfig, runner: ModelRunner) -> PrefixCache:
    disk = None
    if config.state_cache_dir is not None:
        kind = f"{numerics()}-inexact" if config.state_cache_inexact else numerics()
        model, limit = f"{runner.state_format.model}-{kind}", int(config.state_cache_dir_gib * 2**30)
        disk = DiskTier(config.state_cache_dir, model, runner.state_format.snapshot, limit, config.state_key)
    return PrefixCache(runner.window, runner.state_cache_bytes, disk, is_inexact=config.state_cache_inexact)
