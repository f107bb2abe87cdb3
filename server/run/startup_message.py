"""Text that `roost serve` prints once it is ready, and the warning about an accelerator that JAX does not use."""

import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ...engine import DeviceFacts, EngineConfig, MeshShape, ModelSource, history_bytes, shown_bytes, state_bytes

VALUE_COLUMN: Final = 12
"""Column of the values of `summary`."""

_GOOGLE: Final = "0x1ae0"
"""PCI vendor id of TPUs."""

_CUDA13_DRIVER: Final = 580
"""Minimum version of NVIDIA's driver for CUDA 13."""


def greeting(address: str) -> str:
    """Returns the first line that a server prints once it is ready."""
    started = f"Roost {importlib.metadata.version('roost')} is ready"
    if address.startswith("unix:"):
        return f"{started} on {address}"
    scheme, _, rest = address.partition("://")
    host = re.sub(r"^(?:0\.0\.0\.0|\[::\])", "localhost", rest)  # browsers cannot open a wildcard address
    return f"{started}. Chat in a browser: {scheme}://{host}/"


def summary(
    source: ModelSource,
    config: EngineConfig,
    slots: int,
    model_id: str,
    address: str,
    device: DeviceFacts,
    store: str = "memory:",
) -> Sequence[str]:
    """Returns a summary of the served model and its settings, as lines of a name and a value."""
    dtype = source.config.dtype if config.dtype == "auto" else config.dtype
    slot_bytes = state_bytes(source.with_kv_dtype(config.kv_dtype).config, 4 if dtype == "float32" else 2)
    slot_bytes += history_bytes(config.speculation)
    quantize = config.quantize or source.config.quantize
    quantized = f", quantised to {quantize}" if quantize else ""
    window = f", window in {config.kv_dtype}" if config.kv_dtype else ""
    is_simulated = config.simulate is not None
    noise = "  (random weights: its answers are noise)" if source.is_random else f", {_folder(source)}"
    noise = "  (simulated: no model runs, and its answers are noise)" if is_simulated else noise
    programs = config.compile_cache or "not kept: every start compiles again (--compile-cache)"
    return (
        f"address     {address if address.startswith('unix:') else f'{address}/v1'}",
        f"model       {model_id}{noise}",
        f"parameters  {_millions(source.config.num_parameters)}, {dtype}{quantized}{window}",
        f"slots       {slots}, {shown_bytes(slot_bytes)} of state each, {shown_bytes(slots * slot_bytes)} together",
        f"capacity    {slots} requests at a time, {config.max_queue} more may wait",
        f"device      {_device(device, config.shards)}",
        f"programs    {'none are compiled' if is_simulated else programs}",
        f"prefixes    {_prefix_cache(config, store)}",
        f"store       {_store(store)}",
        "stop        Ctrl-C finishes open requests first; a second one stops immediately",
    )


def _folder(source: ModelSource) -> Path:
    first = source.weights[0]
    return (first if first.is_dir() else first.parent).resolve()


def _device(device: DeviceFacts, shards: MeshShape | None) -> str:
    count = f"{device.num_devices} x " if device.num_devices > 1 else ""
    if device.platform != "cpu":
        return f"{count}{device.kind} ({device.platform})"
    if device.why_no_native_kernels is not None:
        return f"{count}CPU without native kernels: {device.why_no_native_kernels}"
    if shards is None or shards.count > 1:
        return f"{count}CPU without native kernels: several devices share the cores"
    return f"{count}CPU with native kernels"


def _prefix_cache(config: EngineConfig, store: str) -> str:
    match config.state_cache_gib:
        case 0:
            memory = "not cached"
        case None:
            memory = "cached in an eighth of free memory"
        case _:
            memory = f"cached in {config.state_cache_gib:g} GiB of memory"
    if config.state_cache_gib == 0:
        return memory
    if config.state_cache_dir is None:
        return memory if store == "memory:" else f"{memory}, until the server stops (--state-cache-dir)"
    return f"{memory} and {config.state_cache_dir_gib:g} GiB of {config.state_cache_dir}"


def _store(address: str) -> str:
    if address == "memory:":
        return "responses, conversations, files and batches are in memory, until the server stops (--store)"
    return address


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"


def unused_accelerator(platform: str, chosen: str, root: Path = Path("/")) -> str | None:
    """Returns a warning if the model runs on the CPU of a machine with an accelerator, unless that was chosen.

    Args:
      platform: JAX's name of the platform that the model runs on.
      chosen: Value of JAX_PLATFORMS: platforms separated by commas; empty leaves the choice to JAX.
      root: Root of the file system.
    """
    if platform != "cpu" or "cpu" in chosen.split(","):
        return None
    if found := _first_device(root / "dev", r"nvidia\d+"):
        return _accelerator_warning(f"an NVIDIA GPU (/dev/{found})", "cuda13") + _old_driver(root)
    if found := _first_device(root / "dev", r"accel\d+"):
        return _accelerator_warning(f"a TPU (/dev/{found})", "tpu")
    if _has_google_device(root) and (found := _first_device(root / "dev/vfio", r"\d+")):
        return _accelerator_warning(f"a TPU (/dev/vfio/{found})", "tpu")
    return None


def _accelerator_warning(device: str, extra: str) -> str:
    return (
        f"running on the CPU, though this machine has {device}: the model will be many times slower. Install JAX for "
        f"it with pip install '.[{extra}]' and check its driver, or set JAX_PLATFORMS=cpu if the CPU is meant"
    )


def _old_driver(root: Path) -> str:
    """Returns a remark if the driver of NVIDIA GPUs is too old for the newest CUDA that JAX supports."""
    file = root / "proc/driver/nvidia/version"
    found = re.search(r"Kernel Module.*?\s(\d+)\.\d+", file.read_text()) if file.is_file() else None
    if found is None or int(found[1]) >= _CUDA13_DRIVER:
        return ""
    needed = f"CUDA 13, which needs {_CUDA13_DRIVER}"
    return f". Its driver {found[1]} is too old for {needed}: update it, or install '.[cuda12]'"


def _first_device(folder: Path, pattern: str) -> str | None:
    """Returns the first file whose name matches, if any."""
    if not folder.is_dir():
        return None
    return next((name for name in sorted(path.name for path in folder.iterdir()) if re.fullmatch(pattern, name)), None)


def _has_google_device(root: Path) -> bool:
    """Returns whether the machine has a TPU: /dev/vfio also holds other devices passed to a virtual machine."""
    vendors = (root / "sys/bus/pci/devices").glob("*/vendor")
    return any(vendor.read_text().strip() == _GOOGLE for vendor in vendors)
