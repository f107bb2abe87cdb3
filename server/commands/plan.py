"""`roost plan`: whether a model fits a device, the roofline of its speed, and the replicas that a load needs."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson
from rich.console import Console
from rich.table import Table

from ...engine import (
    CPU,
    MODEL_ERROR,
    NO_DRAFTS,
    ConfigError,
    ExpectedLoad,
    LoadPlan,
    MeshShape,
    Roofline,
    Targets,
    Verification,
    compute_roofline,
    find_device,
    plan_load,
    saturated_requests_per_s,
    setups_that_fit,
    shown_bytes,
    verify_plan,
)
from ..assembly.service import engine_config, speculation_of
from ..model_hub import find_model
from ..settings import Settings, SettingsError, load_settings
from ..settings.fields import mesh_sizes
from ..terminal.exits import FAILURE_STATUS
from .bench.report import make_table, titled
from .options import PlanOptions

_LIMITS_NOTE = (
    "Limits are theoretical upper bounds (a roofline of the datasheet's bandwidths and FLOP/s), not measurements. "
    "Requests/s are estimates: step times are the roofline's times a factor, compiled for v5e and v6e and guessed for "
    "others. Measure with: roost bench engine"
)
_CPU_NOTE = (
    "Memory is what this machine has available now. No limits: a CPU's rates are in no datasheet. "
    "Measure with: roost bench engine"
)


_LOAD: Final = ExpectedLoad(512, 128, 1.0)
"""Lengths of the requests whose number per second is shown."""

_MAX_SLOTS: Final = 16_384
"""Number of slots beyond which requests per second are left out: only tiny models have more, and it takes seconds."""


def plan(options: PlanOptions) -> int:
    """Prints a plan.

    Returns:
      The exit status, which is 1 if a program that was compiled does not fit.

    Raises:
      SettingsError: Options contradict each other, or a setting is wrong.
      ConfigError: A value is unknown or cannot be used for the device.
      CheckpointError: The model does not exist.
    """
    if options.verify and options.load:
        raise SettingsError("--verify and --load: give one of them")
    settings = load_settings({"model": options.model, "dtype": options.dtype, "mesh": options.mesh, **options.settings})
    speculation = speculation_of(settings)
    if options.verify:
        if speculation is not None:
            raise ConfigError(NO_DRAFTS)
        return 0 if _print_verification(settings, options.device, as_json=options.as_json) else FAILURE_STATUS
    if (sizes := mesh_sizes(settings.mesh)) is None:
        raise ConfigError(f'mesh must be like "data=2,model=4", not {settings.mesh!r}')
    shards, dtype_bytes = MeshShape(*sizes), 4 if options.dtype == "float32" else 2
    if options.device == CPU and shards.count > 1:
        raise ConfigError(f"mesh must be data=1,model=1 for device {CPU}, which is one device, not {settings.mesh!r}")
    device, source = find_device(options.device), find_model(options.model).with_kv_dtype(settings.kv_dtype)
    quantize = settings.quantize or source.config.quantize
    roofline = compute_roofline(
        source.config, device, dtype_bytes, quantize=quantize, shards=shards, speculation=speculation
    )
    numbers = f"{options.dtype}, quantised to {quantize}" if quantize else options.dtype
    numbers += f", window in {settings.kv_dtype}" if settings.kv_dtype else ""
    title = f"{source.name} on {_devices(roofline)}, {numbers}"
    if options.load:
        _print_load_plan(title, roofline, settings.slots, options)
    else:
        _print_plan(title, roofline, as_json=options.as_json)
    return 0


def _devices(roofline: Roofline) -> str:
    shards, name = roofline.shards, roofline.device.name
    if shards.count > 1:
        return f"{shards.data} x {shards.model} {name}"
    return "this machine's CPU" if name == CPU else f"one {name}"


def _requests_per_s(roofline: Roofline) -> float | None:
    """Returns the requests of `_LOAD` per second while all slots are busy, on all data shards together.

    Returns None for a device without a datasheet, or for no slots or more than `_MAX_SLOTS`.
    """
    shards = roofline.shards
    slots = roofline.slots // shards.data
    if roofline.device.peak is None or not 0 < slots <= _MAX_SLOTS:
        return None
    one = replace(roofline, shards=MeshShape(1, shards.model), slots=slots)
    return shards.data * saturated_requests_per_s(_LOAD, one, None)


def _recommended(roofline: Roofline, rate: float | None) -> dict[str, Any] | None:
    """Returns the options for int8 matrices and windows, if a TPU then ends more requests per second."""
    if rate is None or not roofline.device.name.startswith("v") or roofline.dtype_bytes != 2:
        return None
    config = replace(roofline.config, kv_dtype="int8")
    found = compute_roofline(config, roofline.device, 2, quantize="int8", shards=roofline.shards)
    int8 = _requests_per_s(found)
    if int8 is None or int8 <= rate:
        return None
    return {"options": "--quantize int8 --kv-dtype int8", "slots": found.slots, "requests_per_s": int8}


def _print_plan(title: str, roofline: Roofline, *, as_json: bool) -> None:
    """Prints the memory that a model needs on a device or a mesh of devices, and the limits of its speed.

    If no slot fits, prints the options with which one fits.

    Args:
      as_json: Whether to print a JSON object. For a CPU, and if no slot fits, it has no limits of speed.
    """
    rate = _requests_per_s(roofline)
    recommended = _recommended(roofline, rate)
    fitting = [] if roofline.slots else setups_that_fit(roofline)
    would_fit = [{"options": _options(roofline, other), "slots": other.slots} for other in fitting]
    if as_json:
        load = None if rate is None else {"load": "512+128", "default": rate}
        plan = {"title": title, **_plan_as_object(roofline), "requests_per_s": load}
        _print_json({**plan, "recommended": recommended, "would_fit": would_fit})
        return
    rows = [*_rows(roofline)]
    if rate is not None:
        rows.append(("512 + 128 tokens, all slots busy", f"{_shown_rate(rate)} requests/s"))
    notes = []
    if recommended is not None and rate is not None:
        faster = recommended["requests_per_s"]
        gain = f"{_shown_rate(faster)} requests/s, {faster / rate:.2f} times as many."
        notes.append(f"Recommended: {recommended['options']}: {recommended['slots']:,} slots, {gain}")
    if roofline.slots:
        notes.append(_LIMITS_NOTE if roofline.device.peak else _CPU_NOTE)
    else:
        notes += _advice(would_fit)
    _print_table(title, make_table([""], rows), notes)


def _print_json(plan: Mapping[str, Any]) -> None:
    print(orjson.dumps(plan).decode())


def _print_table(title: str, table: Table, notes: Sequence[str]) -> None:
    Console().print(titled(title, [table], notes))


def _plan_as_object(roofline: Roofline) -> dict[str, Any]:
    shown = _shown_slots(roofline)
    return {
        "device": roofline.device.name,
        "mesh": {"data": roofline.shards.data, "model": roofline.shards.model},
        "memory_bytes": roofline.device.memory_bytes,
        "weight_bytes": roofline.weight_bytes,
        "loading_bytes": roofline.loading_bytes,
        "slot_bytes": roofline.slot_bytes,
        "slots": roofline.slots,
        "decode_tokens_per_s": {str(slots): roofline.decode_tokens_per_second(slots) for slots in shown},
        "prefill_tokens_per_s": roofline.prefill_tokens_per_second() if shown else None,
    }


def _shown_rate(per_s: float) -> str:
    return f"{per_s:,.1f}" if per_s < 1000 else f"{per_s:,.0f}"


def _shown_slots(roofline: Roofline) -> Sequence[int]:
    """Returns the numbers of slots whose limits are shown; none for a device without a datasheet."""
    slots = roofline.slots
    return [] if roofline.device.peak is None or not slots else sorted({1, min(32, slots), min(128, slots), slots})


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
    for slots in _shown_slots(roofline):
        noun = "slot" if slots == 1 else "slots"
        yield f"decode limit, {slots:,} {noun}", f"{roofline.decode_tokens_per_second(slots):,.0f} tokens/s"
    yield "prefill limit", f"{roofline.prefill_tokens_per_second():,.0f} tokens/s"


def _advice(would_fit: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields lines of advice if no slot fits: the options with which some do, and their number."""
    if not would_fit:
        yield "It does not fit, nor would it in bfloat16, in int8, on a larger mesh or on another known device."
        return
    yield "It does not fit. What would:"
    width = max(len(each["options"]) for each in would_fit)
    for each in would_fit:
        yield f"  {each['options']:<{width}}  {each['slots']:,} {'slot' if each['slots'] == 1 else 'slots'}"


def _options(roofline: Roofline, other: Roofline) -> str:
    """Returns the command-line options that lead from one roofline to another."""
    if other.device.name != roofline.device.name:
        return f"--device {other.device.name}"
    if other.dtype_bytes != roofline.dtype_bytes:
        return "--dtype bfloat16"
    if other.quantize != roofline.quantize:
        return f"--quantize {other.quantize}"
    data = f"data={other.shards.data}," if other.shards.data > 1 else ""
    return f"--mesh {data}model={other.shards.model}"


_LOAD_NOTE: Final = (
    f"Simulated. Against real servers on a simulated device, throughput and times of requests are within "
    f"{MODEL_ERROR:.0%} (benchmarks/fleet.md), and times between tokens were within 15% in two runs."
)
_COMPILED: Final = "compiled, not run"
_GUESSED: Final = "guessed"
_STEPS: Final = {
    _COMPILED: "Step times are the roofline's times a factor from the compiler's schedules: compiled, not run.",
    _GUESSED: "Step times are the roofline's times a factor that is guessed: no program of this device was measured.",
}


def _print_load_plan(title: str, roofline: Roofline, slots: int | None, options: PlanOptions) -> None:
    """Prints the replicas that serve loads together.

    Args:
      roofline: Roofline of a replica.
      slots: Number of slots of a replica; None takes all that fit.
      options: Options with the loads and the targets.
    """
    loads = [ExpectedLoad.parse(text) for text in options.load or ()]
    targets, roofline = Targets.parse(options.ttft_p99, options.itl_p99), _replica_roofline(roofline, slots)
    found = plan_load(loads, targets, roofline)
    plan = _load_plan_as_object(found, targets, roofline) | {"loads": [str(load) for load in loads]}
    if options.as_json:
        _print_json(plan)
        return
    title = f"{title}: {' and '.join(map(str, loads))}"
    _print_table(title, make_table([""], _load_rows(plan, targets)), [f"{_LOAD_NOTE} {_STEPS[plan['step_times']]}"])


def _load_plan_as_object(found: LoadPlan, targets: Targets, roofline: Roofline) -> dict[str, Any]:
    """Returns a plan as a JSON object."""
    replica = found.replica
    return {
        "requests_per_s": replica.requests_per_s,
        "replicas": found.replicas,
        "chips": found.chips,
        "replicas_with_spare": found.replicas + 1,
        "step_error": found.step_error,
        "replicas_if_slower": found.replicas_if_slower,
        "slots": roofline.slots,
        "ttft_p99_s": replica.ttft_p99_s,
        "itl_p99_s": replica.itl_p99_s,
        "autoscaling": {
            "minReplicas": found.replicas + 1,
            "waitingPerReplica": max(1, math.ceil(replica.waiting)),
        },
        "slots_used_per_replica": max(1, math.floor(replica.slots_used)),
        "settings": {"itl_target_ms": 1e3 * targets.itl_s},
        "model_error": MODEL_ERROR,
        "step_times": _COMPILED if found.is_compiled else _GUESSED,
    }


def _replica_roofline(roofline: Roofline, slots: int | None) -> Roofline:
    """Returns the roofline of a replica.

    Raises:
      ConfigError: Its speed cannot be computed, or it does not have that many slots.
    """
    if roofline.device.peak is None:
        raise ConfigError(f"device must be a chip with a datasheet for --load, not {roofline.device.name}")
    if roofline.shards.data > 1:
        raise ConfigError("mesh must have data=1 for --load: each data shard takes the load of a replica")
    if not roofline.slots:
        raise ConfigError(f"device {roofline.device.name} has no room for the model; see roost plan without --load")
    if slots is not None and slots > roofline.slots:
        raise ConfigError(f"slots must be at most {roofline.slots:,}, which fit, not {slots:,}")
    return roofline if slots is None else replace(roofline, slots=slots)


def _load_rows(plan: Mapping[str, Any], targets: Targets) -> Iterator[tuple[str, str]]:
    slower, scaling = plan["replicas_if_slower"], plan["autoscaling"]
    yield "requests/s of a replica within the targets", f"{plan['requests_per_s']:,.3g}"
    yield "replicas", f"{plan['replicas']:,}"
    yield f"  if steps take {plan['step_error']:g} times as long", "targets missed" if slower is None else f"{slower:,}"
    yield "chips", f"{plan['chips']:,}"
    yield "replicas with a spare (N+1)", f"{plan['replicas_with_spare']:,}"
    yield "time to first token at that rate, p99", _shown_time(plan["ttft_p99_s"], targets.ttft_s)
    yield "time between tokens at that rate, p99", _shown_time(plan["itl_p99_s"], targets.itl_s)
    yield "settings.itl_target_ms", f"{plan['settings']['itl_target_ms']:g}"
    yield "autoscaling.minReplicas", f"{scaling['minReplicas']:,}"
    yield "autoscaling.waitingPerReplica", f"{scaling['waitingPerReplica']:,}"
    yield f"autoscaling.slotsUsedPerReplica, of {plan['slots']:,}", f"{plan['slots_used_per_replica']:,}"


def _shown_time(seconds: float, target_s: float) -> str:
    return f"{1e3 * seconds:,.0f} of {1e3 * target_s:,.0f} ms"


_VERIFICATION_NOTE = (
    "Nothing ran: the memory is the compiler's, for the very programs that serve compiles. HBM is a chip's "
    "memory while the program runs, with weights, slots, results and the code of all programs."
)


def _print_verification(settings: Settings, device: str, *, as_json: bool) -> bool:
    """Prints the memory of each program of a served model on a chip; returns whether all programs fit.

    Raises:
      ConfigError: The device has no compiler here, the mesh is left open, or fewer than 8 slots fit.
      CheckpointError: The model does not exist, or its weights do not fit it.
    """
    config = engine_config(settings)
    if config.shards is None:
        raise ConfigError("mesh must name its chips for --verify, such as data=1,model=4, not auto")
    source = find_model(settings.model)
    found = verify_plan(source, config, device, _print_progress)
    if as_json:
        names = ("name", "rows", "hbm_bytes", "temp_bytes", "custom_calls", "fits")
        programs = [{name: getattr(program, name) for name in names} for program in found.programs]
        _print_json({"slots": found.slots, "hbm_limit_bytes": found.hbm_limit_bytes, "programs": programs})
        return found.fits
    estimate = found.estimated_slots
    unfit = "" if estimate in (None, found.slots) else f" (the estimate of {estimate:,} does not fit)"
    limit = f"limit {shown_bytes(found.hbm_limit_bytes)} on each chip"
    table = make_table(["HBM", "temporaries", "fits"], _verification_rows(found), "program")
    _print_table(f"{source.name} on {device}, {found.slots:,} slots{unfit}\n{limit}", table, [_VERIFICATION_NOTE])
    return found.fits


def _verification_rows(found: Verification) -> Iterator[tuple[str, str, str, str]]:
    for program in found.programs:
        temporaries = "" if program.temp_bytes is None else shown_bytes(program.temp_bytes)
        yield program.name, shown_bytes(program.hbm_bytes), temporaries, "yes" if program.fits else "NO"


def _print_progress(slots: int, done: int, total: int) -> None:
    print(f"{slots:,} slots: {done} of {total} programs compiled", file=sys.stderr, flush=True)
