"""Token ids in, token ids out: the door of the engine. Nothing here knows text or HTTP."""

from .async_engine import AsyncEngine
from .config import EngineConfig, EngineStats
from .constraint import Constraint, TokenMask, mask_of_ids, words_of_mask
from .core import EngineCore
from .device import DeviceFacts, device_facts
from .errors import (
    CheckpointError,
    ConfigError,
    ConstraintError,
    EngineDeadError,
    NumericError,
    QueueFullError,
    QueueTimeoutError,
    RequestTimeoutError,
    RoostError,
)
from .model.config import ModelConfig
from .model.convert import convert
from .model.source import ModelSource, open_model
from .plan import DEVICES, Plan, plan
from .request import (
    MAX_BIASES,
    MAX_LOGPROBS,
    FinishReason,
    Request,
    SamplingParams,
    TokenLogprobs,
    TokenOutput,
)
from .runner import ModelRunner, Progress
from .scheduler import Scheduler

__all__ = [
    "DEVICES",
    "MAX_BIASES",
    "MAX_LOGPROBS",
    "AsyncEngine",
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
    "ModelConfig",
    "ModelSource",
    "NumericError",
    "Plan",
    "Progress",
    "QueueFullError",
    "QueueTimeoutError",
    "Request",
    "RequestTimeoutError",
    "RoostError",
    "SamplingParams",
    "TokenLogprobs",
    "TokenMask",
    "TokenOutput",
    "convert",
    "device_facts",
    "load_engine",
    "mask_of_ids",
    "open_model",
    "plan",
    "words_of_mask",
]


def load_engine(source: ModelSource, config: EngineConfig, progress: Progress | None = None) -> EngineCore:
    """Loads the weights, compiles every shape and allocates every slot; slow.

    Raises:
      CheckpointError: the weights do not fit the model.
      ConfigError: the slots do not fit into memory.
    """
    runner = ModelRunner(source, config, progress)
    scheduler = Scheduler(runner.slots, config.max_queue, runner.limits, config.max_queue_tokens, config.tenants)
    return EngineCore(scheduler, runner)
