"""`roost plan --load`: prints how many replicas serve an expected load within targets."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson
from rich.console import Console
from rich.table import Table

from ...engine import MODEL_ERROR, ConfigError, ExpectedLoad, LoadPlan, Roofline, Targets, plan_load
from .plan import ShownPlan

_NOTE: Final = (
    f"Simulated. Against real servers on a simulated device, throughput and times of requests are within "
    f"{MODEL_ERROR:.0%} (benchmarks/fleet.md), and times between tokens were within 15% in two runs."
)
_COMPILED: Final = "compiled, not run"
_GUESSED: Final = "guessed"
_STEPS: Final = {
    _COMPILED: "Step times are the roofline's times a factor from the compiler's schedules: compiled, not run.",
    _GUESSED: "Step times are the roofline's times a factor that is guessed: no program of this device was measured.",
}


def print_load_plan(
    plan: ShownPlan, loads: Sequence[str], ttft: str, itl: str, slots: int | None, *, as_json: bool
) -> None:
    """Prints the replicas that serve loads together.

    Args:
      plan: A replica.
      loads: Loads such as "512+128@40/s".
      ttft, itl: 99th percentiles of the time to first token and of that between two tokens, such as "60ms".
      slots: Number of slots of a replica; None takes all that fit.
      as_json: Whether to print a JSON object.

    Raises:
      ConfigError: A value cannot be parsed, no slot fits, the device's speed is unknown, or no rate keeps the targets.
    """
    parsed, targets = [ExpectedLoad.parse(text) for text in loads], Targets.parse(ttft, itl)
    roofline = _replica(plan, slots)
    found = plan_load(parsed, targets, roofline, plan.setup.device)
    step_times = _COMPILED if found.is_compiled else _GUESSED
    if as_json:
        print(orjson.dumps(as_object(found, parsed, targets, roofline) | {"step_times": step_times}).decode())
        return
    console = Console(highlight=False)
    console.print(f"{plan.title}: {' and '.join(map(str, parsed))}", style="italic", markup=False)
    table = Table("", "", show_header=False)
    table.columns[1].justify = "right"
    for row in _rows(found, targets, roofline):
        table.add_row(*row)
    console.print(table)
    console.print(f"{_NOTE} {_STEPS[step_times]}", style="dim", markup=False)


def as_object(found: LoadPlan, loads: Sequence[ExpectedLoad], targets: Targets, roofline: Roofline) -> dict[str, Any]:
    """Returns a plan as a JSON object."""
    replica = found.replica
    return {
        "loads": [str(load) for load in loads],
        "requests_per_s": replica.requests_per_s,
        "replicas": found.replicas,
        "chips": found.chips,
        "replicas_with_spare": found.replicas + 1,
        "step_error": found.step_error,
        "replicas_if_slower": found.replicas_if_slower,
        "slots": roofline.slots,
        "ttft_p99_s": replica.ttft_p99_s,
        "itl_p99_s": replica.itl_p99_s,
        "autoscaling": {"minReplicas": found.replicas + 1, "waitingPerReplica": _waiting(found)},
        "slots_used_per_replica": _used(found),
        "settings": {"itl_target_ms": 1e3 * targets.itl_s},
        "model_error": MODEL_ERROR,
    }


def _replica(plan: ShownPlan, slots: int | None) -> Roofline:
    """Returns the roofline of a replica.

    Raises:
      ConfigError: Its speed cannot be computed, or it does not have that many slots.
    """
    roofline, device = plan.roofline, plan.setup.device
    if roofline.device.peak is None:
        raise ConfigError(f"device must be a chip with a datasheet for --load, not {device}")
    if roofline.shards.data > 1:
        raise ConfigError("mesh must have data=1 for --load: each data shard takes the load of a replica")
    if not roofline.slots:
        raise ConfigError(f"device {device} has no room for the model; see roost plan without --load")
    if slots is not None and slots > roofline.slots:
        raise ConfigError(f"slots must be at most {roofline.slots:,}, which fit, not {slots:,}")
    return roofline if slots is None else replace(roofline, slots=slots)


def _rows(found: LoadPlan, targets: Targets, roofline: Roofline) -> Iterator[tuple[str, str]]:
    replica = found.replica
    yield "requests/s of a replica within the targets", f"{replica.requests_per_s:,.3g}"
    slower = found.replicas_if_slower
    yield "replicas", f"{found.replicas:,}"
    yield f"  if steps take {found.step_error:g} times as long", "targets missed" if slower is None else f"{slower:,}"
    yield "chips", f"{found.chips:,}"
    yield "replicas with a spare (N+1)", f"{found.replicas + 1:,}"
    yield "time to first token at that rate, p99", _time(replica.ttft_p99_s, targets.ttft_s)
    yield "time between tokens at that rate, p99", _time(replica.itl_p99_s, targets.itl_s)
    yield "settings.itl_target_ms", f"{1e3 * targets.itl_s:g}"
    yield "autoscaling.minReplicas", f"{found.replicas + 1:,}"
    yield "autoscaling.waitingPerReplica", f"{_waiting(found):,}"
    yield f"autoscaling.slotsUsedPerReplica, of {roofline.slots:,}", f"{_used(found):,}"


def _time(seconds: float, target_s: float) -> str:
    return f"{1e3 * seconds:,.0f} of {1e3 * target_s:,.0f} ms"


def _waiting(found: LoadPlan) -> int:
    """Returns the mean number of requests that wait for a slot of a replica at its rate; at least 1."""
    return max(1, math.ceil(found.replica.waiting))


def _used(found: LoadPlan) -> int:
    """Returns the mean number of slots in use of a replica at its rate; at least 1."""
    return max(1, math.floor(found.replica.slots_used))
