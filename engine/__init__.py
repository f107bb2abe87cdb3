"""Public interface of the engine: token ids in, token ids out. Nothing here knows text or HTTP."""

from .async_engine import AsyncEngine, OutputSink
from .builder import Progress, follow, load_engine, load_runner
from .checkpoint import FORMATS as CHECKPOINT_FORMATS
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
from .core.mesh import HostGroup, MeshShape
from .core.output_constraint import Constraint, TokenMask, mask_of_ids, words_of_mask
from .core.request import FinishReason, Replay, Request, TokenLogprobs, TokenOutput
from .core.sampling_params import MAX_BIASES, MAX_LOGPROBS, MAX_STOP_IDS, SAMPLING_FIELDS, SamplingParams
from .core.simulation import SIMULATED, Simulation
from .core.snapshot import Snapshot
from .core.tenant_store import TenantStore
from .core.units import shown_bytes
from .engine_core import EngineCore
from .model.config import ModelConfig
from .platform import DeviceFacts, device_facts
from .prefix_cache.cache import PrefixCache
from .prefix_cache.request_checkpoint import CheckpointFormat, RequestCheckpoint
from .prefix_cache.saved_state import SavedState, SavedStateFormat
from .roofline import CPU, DEVICES, Roofline, Setup, compute_roofline, find_device, setups_that_fit
from .scheduling.scheduler import Scheduler
from .verification import Verification, VerifiedProgram, verify_plan
from .worker.profiling import record_profile
from .worker.runner import ModelRunner

__all__ = [
    "CHECKPOINT_FORMATS",
    "CPU",
    "DEVICES",
    "MAX_BIASES",
    "MAX_LOGPROBS",
    "MAX_STOP_IDS",
    "MAX_TOKENS",
    "PREFILL_BLOCK",
    "SAMPLING_FIELDS",
    "SIMULATED",
    "STEP_TOKEN_BOUNDS",
    "AsyncEngine",
    "CacheStats",
    "CheckpointError",
    "CheckpointFormat",
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
    "MeshShape",
    "ModelConfig",
    "ModelRunner",
    "ModelSource",
    "NumericError",
    "OutputSink",
    "ParameterError",
    "PrefixCache",
    "Progress",
    "QueueFullError",
    "QueueTimeoutError",
    "Replay",
    "Request",
    "RequestCheckpoint",
    "RequestTimeoutError",
    "Roofline",
    "RoostError",
    "SamplingParams",
    "SavedState",
    "SavedStateFormat",
    "Scheduler",
    "Setup",
    "Simulation",
    "Snapshot",
    "StateFileError",
    "TenantStore",
    "TokenLogprobs",
    "TokenMask",
    "TokenOutput",
    "UnknownRequestError",
    "Verification",
    "VerifiedProgram",
    "compute_roofline",
    "convert",
    "device_facts",
    "find_device",
    "follow",
    "load_engine",
    "load_runner",
    "mask_of_ids",
    "open_model",
    "record_profile",
    "setups_that_fit",
    "shown_bytes",
    "verify_plan",
    "words_of_mask",
]
