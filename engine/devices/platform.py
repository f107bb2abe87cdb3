"""The platforms that Roost runs on: one record of every decision that depends on the hardware, and the devices.

`choose_platform` picks a record once, when an engine is built; the model, the device programs and the runner read its
fields, and kernels get them as plain arguments. Nothing else in `engine/` asks which hardware there is. Programs are
compiled ahead of time for a TPU, on a machine without one, by passing `TPU`.

`configure_jax` sets JAX's process-wide options once, before JAX looks for devices.
"""

import errno
import grp
import hashlib
import importlib.metadata
import logging
import os
import platform
import pwd
import stat
import tempfile
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import jax
import numpy as np
from filelock import FileLock
from jax.sharding import Mesh

from ...kernels import XLA, Backend, GpuSizes, backends, native
from ...kernels.sampling import reads_logits_once
from ..types.config import DATA, MAX_PREFILL_ROWS, MODEL, PREFILL_BLOCK, MeshShape
from ..types.errors import ConfigError
from ..types.host_memory import available_memory, shown_bytes

CPU_OPTIONS: Final = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
"""XLA options for CPUs: only single dots go to the fast library. Fused with a reduction or an exponential, they would
round differently at different numbers of rows, and a request's tokens must not depend on its neighbours."""

MIN_CAPABILITY: Final = (8, 0)
"""Minimum compute capability of NVIDIA GPUs that have Pallas kernels; Triton refuses older ones."""

MIN_SLOTS: Final = 8
"""Minimum number of slots that must fit in memory if the config leaves the number open."""

_DECODE_ROWS: Final = (8, 32, 128, 256, 512, 1024, 2048, 4096, 8192)
"""Numbers of slots of the decode steps on TPUs and GPUs. A step of few rows takes as long as reading the weights. Most
kernels compute all rows of a step, busy or idle, and each number below all slots is a program to compile."""

_IDLE_ROWS_PER_MOVE: Final = 64
"""On TPUs and GPUs. On a v5e an idle row takes 25 µs of a step, and a move of 2B's state 50 µs and a dispatch, so that
moves pay soon. While a load hovers at 256 of 608 slots, this saves a quarter of the moves for 4 % more rows."""

_logger = logging.getLogger(__name__)


class StepSizes(NamedTuple):
    """Sizes of the steps that are compiled.

    Attributes:
      decode_rows: Numbers of slots of the decode steps, apart from the step of all slots; ascending multiples of the
        first.
      prefill_shapes: Numbers of prompts and of tokens of each in the prefill steps, apart from the longest chunk;
        None for powers of two up to it.
      draft_rows: Numbers of slots of the steps with drafted tokens, in rising order; empty if there are none.
    """

    decode_rows: tuple[int, ...] = ()
    prefill_shapes: tuple[tuple[int, int], ...] | None = None
    draft_rows: tuple[int, ...] = ()


_ALL_SLOTS: Final = StepSizes()


@dataclass(frozen=True, slots=True)
class Platform:
    """Decisions that depend on the hardware.

    Attributes:
      kernels: Backend of `roost.kernels`.
      gate_dtype: Dtype of the RG-LRU's gate matrices; None for the dtype of the activations.
      uses_host_memory: Whether weights and slots lie in the host's memory, which all devices share.
      max_slots: Maximum number of slots if the config leaves it open; None for as many as memory allows.
      sizes: Sizes of steps, between which they differ in time.
      padded_sizes: Sizes of steps if products compute padding once, so that few steps are compiled; None if they never
        do.
      idle_rows_per_move: Number of idle rows, summed over decode steps, that outweigh moving the state of a slot, after
        which fewer rows suffice; 0 for moves that cost nothing.
      decode_steps: Maximum number of tokens per row of one decode dispatch.
      prefill_rows: Maximum number of prompts in one prefill step.
      layers_per_slice: Number of layers in one step of a prefill batch; None for all layers.
      jits_layers: Whether each layer is a jitted function, so that layers of one kind are traced once.
      has_layer_barrier: Whether an optimization barrier follows every layer of a prefill.
      has_state_barrier: Whether an optimization barrier separates reads of the state pool from its writes.
      logits_per_row: Number of arrays of float32 logits that each row adds to a decode step's temporaries, by
        measurement.
      skips_logits: Whether a step of greedy rows takes the argmax in a separate branch, without the sampler.
      compile_options: Options of XLA's compiler, each with its value.
      exports_programs: Whether traced programs may be kept for later starts. Pallas kernels are lowered in another way
        when they are exported, which was not measured.
    """

    name: str
    kernels: Backend = XLA
    gate_dtype: str | None = None
    uses_host_memory: bool = False
    max_slots: int | None = None
    sizes: StepSizes = _ALL_SLOTS
    padded_sizes: StepSizes | None = None
    idle_rows_per_move: int = 0
    decode_steps: int = 1
    prefill_rows: int = MAX_PREFILL_ROWS
    layers_per_slice: int | None = None
    jits_layers: bool = True
    has_layer_barrier: bool = False
    has_state_barrier: bool = True
    logits_per_row: float = 4.0
    skips_logits: bool = False
    compile_options: tuple[tuple[str, str], ...] = ()
    exports_programs: bool = False


PORTABLE: Final = Platform("portable")
"""XLA's own kernels, with nothing tuned: the base of the platforms below. Training and shape arithmetic use it."""

GPU: Final = replace(PORTABLE, name="gpu")
"""GPUs without Pallas kernels: AMD's, and NVIDIA's below `MIN_CAPABILITY`."""

TPU: Final = Platform(
    "tpu",
    kernels=backends.TPU,
    sizes=StepSizes(
        _DECODE_ROWS,
        # A lone prompt gets its token as soon as with a program of its own length; each other shape is for several.
        ((1, 128), (2, 128), (1, 256), (8, 64), (1, 512)),
    ),
    idle_rows_per_move=_IDLE_ROWS_PER_MOVE,
    jits_layers=False,  # the compiler fuses less across functions: 60 MB more per step of 512 rows of 2B
    has_layer_barrier=True,  # else every layer's output is kept, to be summed at the end
    has_state_barrier=False,
    logits_per_row=0.95,
    skips_logits=True,  # the argmax's kernel does not write the logits, a megabyte per row
)

CPU_MESH: Final = Platform(
    "cpu-mesh",
    kernels=backends.CPU_XLA,  # devices share the cores, which native kernels would each take whole
    gate_dtype="float32",  # no fast path for bfloat16
    uses_host_memory=True,
    max_slots=32,  # more rows gain nothing and slow down a lone request
    has_state_barrier=True,  # else reads stray behind the writes, and the pool is copied
    compile_options=tuple(CPU_OPTIONS.items()),
)

CPU: Final = replace(
    CPU_MESH,
    name="cpu",
    # Rounds of more tokens than a lone request drafts would take longer.
    sizes=StepSizes((1, 4, 8, 16, 32, 64, 128, 256), draft_rows=(1, 8)),
    decode_steps=8,
    prefill_rows=1,  # a prompt's tokens fill the cores as well as several prompts'
    layers_per_slice=3,  # with 128 tokens, they take as long as one decode step of eight slots
    exports_programs=True,
)

CPU_NATIVE: Final = replace(
    CPU,
    name="cpu-native",
    kernels=backends.CPU,
    # Chunks of 64 would save 3 % of a short prompt, for three more programs.
    padded_sizes=StepSizes((1, 4, 8, 32, 128), ((1, 2 * PREFILL_BLOCK),), (8,)),
)


_SMALL_GPU: Final = GpuSizes(block_memory=101_376, multiprocessors=58)
"""An L4. Blocks that fit it fit all other GPUs from `MIN_CAPABILITY` on."""


def gpu_platform(capability: tuple[int, int], sizes: GpuSizes) -> Platform:
    """Returns the platform of NVIDIA GPUs of this compute capability and these sizes."""
    if capability < MIN_CAPABILITY:
        return GPU
    return replace(
        GPU,
        kernels=backends.gpu_backend(sizes),
        sizes=StepSizes(_DECODE_ROWS),
        idle_rows_per_move=_IDLE_ROWS_PER_MOVE,
        logits_per_row=2.0,
        skips_logits=True,  # else a step of greedy rows copies the logits past each processor that it skips
    )


def gpu_capability(device: jax.Device) -> tuple[int, int]:
    """Returns the compute capability of a GPU; (0, 0) if it is not NVIDIA's."""
    major, _, minor = str(getattr(device, "compute_capability", "")).partition(".")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)


def gpu_sizes(device: jax.Device) -> GpuSizes:
    """Returns the sizes of a GPU of this machine; `_SMALL_GPU` where JAX does not report them."""
    memory = getattr(device, "shared_memory_per_block_optin", _SMALL_GPU.block_memory)
    return GpuSizes(memory, getattr(device, "core_count", _SMALL_GPU.multiprocessors))


def choose_platform(shards: MeshShape, without: Collection[str] = ()) -> Platform:
    """Returns the platform of this process's devices for a model on a mesh of this shape.

    Args:
      without: Names of kernels that XLA replaces, if the platform has them.
    """
    found = _platform(shards)
    own = set(without) & set(found.kernels.names)
    return without_kernels(found, own) if own else found


def _platform(shards: MeshShape) -> Platform:
    match jax.default_backend():
        case "tpu":
            return TPU
        case "cpu" if shards.count > 1:
            return CPU_MESH
        case "cpu":
            return CPU_NATIVE if native.is_available() else CPU
        case _:
            device = jax.local_devices()[0]
            capability = gpu_capability(device)
            if capability < MIN_CAPABILITY:
                _logger.warning(
                    "%s is no NVIDIA GPU of compute capability %d.%d or above. Without kernels for it, XLA launches "
                    "more than 50 for every token of a prompt, and long prompts take many times longer",
                    device.device_kind,
                    *MIN_CAPABILITY,
                )
            return gpu_platform(capability, gpu_sizes(device))


def without_kernels(platform: Platform, kernels: Collection[str]) -> Platform:
    """Returns the platform without some kernels; see `Backend.without`."""
    rest = platform.kernels.without(kernels)
    sampled = platform if reads_logits_once(rest) else PORTABLE
    return replace(platform, kernels=rest, logits_per_row=sampled.logits_per_row)


class DeviceFacts(NamedTuple):
    """The devices that models run on, for reports.

    Attributes:
      kind: JAX's name of the device, such as "cpu" or "TPU v5 lite".
      num_devices: Number of devices of this process.
      bytes_in_use: Bytes in use of the first device's own memory; None if it has none.
      platform: JAX's name of the platform: "cpu", "gpu" or "tpu".
      why_no_native_kernels: Why the native kernels for CPUs cannot be used; None if they can, or on other devices.
    """

    kind: str
    num_devices: int
    bytes_in_use: int | None
    platform: str = "cpu"
    why_no_native_kernels: str | None = None


def device_facts() -> DeviceFacts:
    """Returns facts about this process's devices as they are now."""
    devices = jax.local_devices()
    on, in_use = devices[0].platform, memory_stats().get("bytes_in_use")
    why_not = native.why_unavailable() if on == "cpu" else None
    return DeviceFacts(devices[0].device_kind, len(devices), in_use, on, why_not)


def memory_stats() -> Mapping[str, int]:
    """Returns numbers of bytes of the first device's own memory by JAX's names, such as "bytes_in_use",
    "peak_bytes_in_use" and "bytes_limit"; empty if it has none.
    """
    return jax.local_devices()[0].memory_stats() or {}


def numerics() -> str:
    """Returns 8 hexadecimal digits for what decides the last bits of a state: versions, device and kernels.

    Hosts with AVX2, AVX-512 or AMX differ, because XLA and the native kernels run different code on them.
    """
    versions = [importlib.metadata.version(package) for package in ("roost", "jaxlib")]
    device = (jax.local_devices()[0].device_kind, platform.machine(), platform.processor(), native.instruction_sets())
    facts = repr((versions, *device, native.chosen_products(), native.CALLS_VERSION))
    return hashlib.sha256(facts.encode()).hexdigest()[:8]


def open_mesh(shards: MeshShape) -> Mesh | None:
    """Returns a mesh of the first devices; None for one device, which needs no mesh.

    Raises:
      ConfigError: There are too few devices.
    """
    if shards.count == 1:
        return None
    devices = jax.devices()
    if len(devices) < shards.count:
        raise ConfigError(
            f"mesh data={shards.data},model={shards.model} takes {shards.count} devices, but there are {len(devices)}"
        )
    return Mesh(np.array(devices[: shards.count]).reshape(shards.data, shards.model), (DATA, MODEL))


def choose_mesh_shape(weight_bytes: int) -> MeshShape:
    """Returns a mesh of all devices, with the fewest model shards whose weights take at most half of a device."""
    devices, model = jax.devices(), 1
    memory = memory_stats().get("bytes_limit", 0)  # a CPU has no separate memory
    while memory and weight_bytes / model > memory / 2 and len(devices) % (2 * model) == 0:
        model *= 2
    return MeshShape(len(devices) // model, model)


def affordable_slots(slot_bytes: int, weight_bytes: int, on: Platform) -> int:
    """Returns the number of slots that fit into nine tenths of the host's memory that the weights leave.

    Args:
      slot_bytes: Bytes of a slot's state.
      weight_bytes: Bytes that the weights will take.
      on: Platform whose devices use the host's memory.

    Raises:
      ConfigError: Fewer than 8 slots fit.
    """
    free = available_memory() - weight_bytes
    slots = int(0.9 * free) // slot_bytes
    if slots < MIN_SLOTS:
        raise ConfigError(
            f"memory left for slots is {shown_bytes(max(free, 0))} and a slot takes {shown_bytes(slot_bytes)}, "
            f"so not even {MIN_SLOTS} fit; set slots to the number you want to try"
        )
    return slots if on.max_slots is None else min(slots, on.max_slots)


def device_memory() -> int:
    """Returns the bytes of the first device's own memory that are free."""
    stats = memory_stats()
    return stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)


GPU_MEMORY_SHARE: Final = 0.92
"""Share of a GPU's memory that JAX allocates in advance, and from which it serves all arrays. JAX's default of 0.75
would waste slots. The rest is for CUDA, its libraries and the code of programs."""

_PROBE_BYTES: Final = 2**20
"""Bytes that must fit into the folder of compiled programs, about one program."""

_MAX_CACHE_BYTES: Final = 8 * 2**30
"""Maximum size of the folder of compiled programs, from which JAX removes the least recently used ones. JAX writes
programs under a lock only if there is a maximum; without it, a process may read one that another is writing."""

_UNWRITABLE: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a folder that may be correct, but currently accepts no new programs."""


def configure_jax(compile_cache: Path | None, *, has_hosts: bool = False) -> None:
    """Sets JAX's process-wide options.

    On a GPU, JAX takes `GPU_MEMORY_SHARE` of the memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION sets another share.

    Compiled programs are written to the folder, and found there by later processes. Their names distinguish programs,
    versions, compiler options and kinds of devices (for CPUs, their instructions). The folder holds at most
    `_MAX_CACHE_BYTES`. If it is full or read-only, programs are read from it, none is added, and a warning is logged.

    A compiled program is code. The folder is created with mode 0700. It must belong to this user or to root, and no
    other user may be able to write to it.

    Args:
      compile_cache: Folder of compiled programs; None for no cache.
      has_hosts: Whether this process is one of several hosts.

    Raises:
      ConfigError: The path cannot be used as the folder, or others may write to it.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_MEMORY_SHARE))
    if has_hosts:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM, which shuts Roost down
    if compile_cache is None:
        return
    is_locked = _check_folder(compile_cache) and _takes_locks(compile_cache)
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache")  # one for each program
    jax.config.update("jax_compilation_cache_dir", str(compile_cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_compilation_cache_max_size", _MAX_CACHE_BYTES if is_locked else -1)


def _check_folder(folder: Path) -> bool:
    """Returns whether the folder accepts new programs.

    Raises:
      ConfigError: The path cannot be used as the folder, or others may write to it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        _check_owner(folder)
        _probe(folder)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            reason = f"cannot be written to ({error.strerror}); name another folder, or off"
            raise ConfigError(f"compile_cache {folder}: {reason}") from None
        _logger.warning("compile_cache %s: no program will be kept there (%s)", folder, error.strerror)
        return False
    return True


def _takes_locks(folder: Path) -> bool:
    """Returns whether files in the folder can be locked, as they cannot be on some network file systems."""
    try:
        with FileLock(folder / ".lockfile", timeout=10):
            return True
    except (OSError, NotImplementedError):
        return False


def _probe(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(bytes(_PROBE_BYTES))


def _check_owner(folder: Path) -> None:
    """Checks that only this user and root can put programs into a folder.

    Raises:
      ConfigError: The folder belongs to another user, or its mode lets others write.
    """
    found = folder.stat()
    if found.st_uid not in (0, os.getuid()):
        reason = f"belongs to user {found.st_uid}, who could have any code run here; name a folder of your own, or off"
        raise ConfigError(f"compile_cache {folder}: {reason}")
    is_open_to_group = found.st_mode & stat.S_IWGRP and not _is_private_group(found.st_gid)
    if found.st_mode & stat.S_IWOTH or is_open_to_group:
        mode = stat.S_IMODE(found.st_mode)
        reason = f"others may write to it (mode {mode:04o}), and have any code run here; empty it and run chmod go-w"
        raise ConfigError(f"compile_cache {folder}: {reason}")


def _is_private_group(group_id: int) -> bool:
    """Returns whether no other known user is a member of one of this process's groups."""
    if group_id not in (os.getgid(), *os.getgroups()):
        return False
    others = {each.pw_uid for each in pwd.getpwall() if each.pw_gid == group_id} - {os.getuid()}
    try:
        names = set(grp.getgrgid(group_id).gr_mem)
    except KeyError:  # the usual case in a container, whose groups often have no names
        names = set()
    own = {each.pw_name for each in pwd.getpwall() if each.pw_uid == os.getuid()}
    return not others and names <= own
