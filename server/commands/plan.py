"""`roost plan`: prints whether a model fits a device, and the roofline of its speed."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from ...engine import (
    CPU,
    ConfigError,
    MeshShape,
    Roofline,
    Setup,
    compute_roofline,
    find_device,
    setups_that_fit,
    shown_bytes,
)
from ..model_hub import find_model
from ..settings import mesh_sizes

_LIMITS_NOTE = (
    "Limits are theoretical upper bounds (a roofline of the datasheet's bandwidth and FLOP/s), not measurements. "
    "Measure with: roost bench engine"
)
_CPU_NOTE = (
    "Memory is what this machine has available now. No limits: a CPU's rates are in no datasheet. "
    "Measure with: roost bench engine"
)


def print_plan(
    model: str,
    device: str,
    dtype: str,
    quantize: str | None = None,
    mesh: str = "data=1,model=1",
    kv_dtype: str | None = None,
) -> None:
    """Prints the memory that a model needs on a device or a mesh of devices, and the limits of its speed.

    If not one slot fits, prints the options that make it fit.

    Raises:
      ConfigError: The device, a dtype, the quantisation or the mesh is not known.
      CheckpointError: The model does not exist.
    """
    found = find_device(device)
    sizes = {"float32": 4, "bfloat16": 2}
    if dtype not in sizes:
        raise ConfigError(f"dtype must be float32 or bfloat16, not {dtype!r}")
    if quantize not in (None, "int8"):
        raise ConfigError(f"quantize must be int8, not {quantize!r}")
    if kv_dtype not in (None, "int8"):
        raise ConfigError(f"kv_dtype must be int8, not {kv_dtype!r}")
    shards = _shards(mesh)
    if device == CPU and shards.count > 1:
        raise ConfigError(f"mesh must be data=1,model=1 for device {CPU}, which is one device, not {mesh!r}")
    source = find_model(model).with_kv_dtype(kv_dtype)
    quantize = quantize or source.config.quantize
    roofline = compute_roofline(source.config, found, sizes[dtype], is_quantized=quantize is not None, shards=shards)
    console = Console(highlight=False)
    numbers = f"{dtype}, quantised to {quantize}" if quantize else dtype
    numbers += f", window in {kv_dtype}" if kv_dtype else ""
    console.print(_title(roofline, source.name, device, numbers), style="italic", markup=False)
    table = Table("", "", show_header=False)
    table.columns[1].justify = "right"
    for row in _rows(roofline):
        table.add_row(*row)
    console.print(table)
    if roofline.slots:
        console.print(_LIMITS_NOTE if roofline.device.peak else _CPU_NOTE, style="dim", markup=False)
        return
    setup = Setup(device, sizes[dtype], quantize is not None, shards)
    for line in _advice(setup, setups_that_fit(source.config, setup)):
        console.print(line, markup=False)


def _shards(mesh: str) -> MeshShape:
    try:
        sizes = mesh_sizes(mesh)
    except ValueError:
        sizes = None
    if sizes is None:
        raise ConfigError(f'mesh must be like "data=2,model=4", not {mesh!r}')
    return MeshShape(*sizes)


def _title(roofline: Roofline, name: str, device: str, numbers: str) -> str:
    shards = roofline.shards
    one = "this machine's CPU" if device == CPU else f"one {device}"
    return f"{name} on {one if shards.count == 1 else f'{shards.data} x {shards.model} {device}'}, {numbers}"


def _rows(roofline: Roofline) -> Iterator[tuple[str, str]]:
    count = roofline.shards.count
    each = " on each chip" if count > 1 else ""
    yield f"memory{each}", shown_bytes(roofline.device.memory_bytes)
    yield f"weights{each}", shown_bytes(roofline.weight_bytes)
    if count == 1:
        yield "host memory to load them, at most", shown_bytes(roofline.loading_bytes)
    yield "state of a slot", shown_bytes(roofline.slot_bytes)
    if count > 1:
        yield "slots that fit, for each chip", f"{roofline.slots // count:,}"
    yield "slots that fit", f"{roofline.slots:,}"
    if not roofline.slots:
        return
    yield f"memory used with all of them{each}", shown_bytes(roofline.memory_bytes(roofline.slots))
    if roofline.device.peak is None:
        return
    for slots in sorted({1, min(32, roofline.slots), min(128, roofline.slots), roofline.slots}):
        noun = "slot" if slots == 1 else "slots"
        yield f"decode limit, {slots:,} {noun}", f"{roofline.decode_tokens_per_second(slots):,.0f} tokens/s"
    yield "prefill limit", f"{roofline.prefill_tokens_per_second():,.0f} tokens/s"


def _advice(setup: Setup, fitting: list[tuple[Setup, Roofline]]) -> Iterator[str]:
    """Yields lines of advice if no slot fits: the options of each fitting setup, and its number of slots."""
    if not fitting:
        yield "It does not fit, nor would it in bfloat16, in int8, on a larger mesh or on another known device."
        return
    yield "It does not fit. What would:"
    options = [(_options(setup, other), roofline.slots) for other, roofline in fitting]
    width = max(len(option) for option, _ in options)
    for option, slots in options:
        yield f"  {option:<{width}}  {slots:,} {'slot' if slots == 1 else 'slots'}"


def _options(setup: Setup, other: Setup) -> str:
    """Returns the command-line options that lead from one setup to another."""
    if other.device != setup.device:
        return f"--device {other.device}"
    if other.dtype_bytes != setup.dtype_bytes:
        return "--dtype bfloat16"
    if other.is_quantized != setup.is_quantized:
        return "--quantize int8"
    data = f"data={other.shards.data}," if other.shards.data > 1 else ""
    return f"--mesh {data}model={other.shards.model}"
