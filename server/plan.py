"""`roost plan`: will it fit, and how fast could it be."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from ..engine import DEVICES, ConfigError, Plan, Shards, plan
from .fetching import find_model
from .settings import mesh_sizes


def print_plan(model: str, device: str, dtype: str, quantize: str | None = None, mesh: str = "data=1,model=1") -> None:
    """Prints what the model needs on the device, or on each of a mesh of them, and the limits of its speed.

    Raises:
      ConfigError: the device, the dtype, the quantisation or the mesh is not known.
      CheckpointError: there is no such model.
    """
    if device not in DEVICES:
        raise ConfigError(f"device {device!r} is not known; give one of {', '.join(DEVICES)}")
    sizes = {"float32": 4, "bfloat16": 2}
    if dtype not in sizes:
        raise ConfigError(f"dtype must be float32 or bfloat16, not {dtype!r}")
    if quantize not in (None, "int8"):
        raise ConfigError(f"quantize must be int8, not {quantize!r}")
    shards = _shards(mesh)
    source = find_model(model)
    quantize = quantize or source.config.quantize
    planned = plan(source.config, DEVICES[device], sizes[dtype], is_quantized=quantize is not None, shards=shards)
    numbers = f"{dtype}, quantised to {quantize}" if quantize else dtype
    where = f"one {device}" if shards.count == 1 else f"{shards.data} x {shards.model} {device}"
    table = Table("", "", title=f"{source.name} on {where}, {numbers}", show_header=False, title_justify="left")
    table.columns[1].justify = "right"
    for name, value in _rows(planned):
        table.add_row(name, value)
    Console().print(table)


def _shards(mesh: str) -> Shards:
    try:
        sizes = mesh_sizes(mesh)
    except ValueError:
        sizes = None
    if sizes is None:
        raise ConfigError(f'mesh must be like "data=2,model=4", not {mesh!r}')
    return Shards(*sizes)


def _rows(planned: Plan) -> Iterator[tuple[str, str]]:
    count = planned.shards.count
    each = " on each chip" if count > 1 else ""
    yield f"weights{each}", f"{planned.weight_bytes / 1e9:.2f} GB"
    if count == 1:
        yield "host memory to load them, at most", f"{planned.loading_bytes / 1e9:.2f} GB"
    yield "state of a slot", f"{planned.slot_bytes / 1e6:.2f} MB"
    if count > 1:
        yield "slots that fit, for each chip", f"{planned.slots // count:,}"
    yield "slots that fit", f"{planned.slots:,}"
    if not planned.slots:
        return
    yield f"memory with all of them{each}", f"{planned.memory_bytes(planned.slots) / 1e9:.2f} GB"
    for slots in sorted({1, min(32, planned.slots), min(128, planned.slots), planned.slots}):
        yield f"decode limit, {slots:,} slots", f"{planned.decode_tokens_per_second(slots):,.0f} tokens/s"
    yield "prefill limit", f"{planned.prefill_tokens_per_second():,.0f} tokens/s"
