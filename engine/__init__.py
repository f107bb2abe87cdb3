"""Public interface of the engine: token ids in, token ids out. The engine does not know text or HTTP."""

from .async_engine import AsyncEngine, OutputSink
from .builder import follow, load_engine, load_runner
from .capacity.chips import TPUS, Verification, VerifiedProgram, compiles_from_cache, verify_plan
from .capacity.roofline import (
    CPU,
    DEVICES,
    Roofline,
    compute_roofline,
    device_named,
    find_device,
    setups_that_fit,
)
from .checkpoint.conversion import TEXT_TOKENS, convert
from .checkpoint.lora import Adapter, open_adapter
from .checkpoint.source import ModelSource, open_model
from .devices.platform import DeviceFacts, device_facts, memory_stats
from .engine_core import EngineCore
from .kernel_checks.checks import KernelCheck, check_kernels
from .model.state import state_bytes
from .planning.replicas import MODEL_ERROR, ExpectedLoad, LoadPlan, Targets, plan_load, saturated_requests_per_s
from .prefix_cache.cache import PrefixCache
from .scheduling.scheduler import Scheduler
from .types.config import (
    MAX_PREDICTION,
    MAX_TOKENS,
    NO_DRAFTS,
    PREFILL_BLOCK,
    QUANTIZATIONS,
    SIMULATED,
    STEP_TOKEN_BOUNDS,
    UNUSED_PREDICTION,
    CacheStats,
    DraftCounts,
    EngineConfig,
    EngineStats,
    HostGroup,
    MeshShape,
    PredictionUse,
    Quantization,
    Simulation,
    Speculation,
    history_bytes,
)
from .types.errors import (
    CheckpointError,
    ConfigError,
    ConstraintError,
    ConstraintLostError,
    EngineDeadError,
    EngineStoppedError,
    NumericError,
    ParameterError,
    QueueFullError,
    QueueTimeoutError,
    RequestTimeoutError,
    RoostError,
    StateFileError,
    UnknownRequestError,
)
from .types.host_memory import ID_BYTES, TenantStore, id_bytes, ids_in, pack_ids, shown_bytes
from .types.request import FinishReason, Replay, Request, TokenLogprobs, TokenOutput
from .types.sampling_params import MAX_BIASES, MAX_LOGPROBS, MAX_STOP_IDS, SAMPLING_FIELDS, SamplingParams
from .types.snapshot import RequestSnapshot, RequestSnapshotFormat, SavedState, SavedStateFormat, Snapshot
from .worker.profiling import longest_operations, profiled, record_profile
from .worker.runner import ModelRunner
