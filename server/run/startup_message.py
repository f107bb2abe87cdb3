"""Text that `roost serve` prints once it is ready."""

import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path

from ...engine import DeviceFacts, EngineConfig, MeshShape, ModelSource, history_bytes, shown_bytes, state_bytes


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
