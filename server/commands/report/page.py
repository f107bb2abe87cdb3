"""The report as a page in Markdown."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from ....engine import shown_bytes
from .parts import PARTS

_SEND: Final = (
    "Send this page and the JSON file beside it as an issue of the kind *Report of a device*: "
    "`docs/how-to/benchmark.md` says how."
)

_DECODE: Final = ("decode", "tokens/s", "step, ms", "host, ms", "plan, ms", "roofline, ms", "roofline / step")
_PREFILL: Final = ("prefill", "tokens/s", "prompt, ms", "roofline, ms", "roofline / prompt")
_MEMORY: Final = {
    "planned_bytes": "weights and slots by plan",
    "peak_bytes": "peak of the device",
    "limit_bytes": "limit of the device",
    "process_bytes": "the process",
}
"""Columns of the tables of speed, and names of the fields of memory."""

type Found = Mapping[str, Any]
"""Results of a part; see `parts.Result`."""


def as_page(document: Mapping[str, Any]) -> str:
    """Returns a report in Markdown."""
    return "\n\n".join(_blocks(document)) + "\n"


def _blocks(document: Mapping[str, Any]) -> Iterator[str]:
    parts: Mapping[str, Found] = document["parts"]
    yield f"# Report of Roost on {_device(parts.get('machine', {}))}"
    yield _verdict(document)
    for number, part in enumerate((part for part in PARTS if part.name in parts), 1):
        found = parts[part.name]
        yield f"## {number}. {part.title}"
        if "error" in found:
            yield f"**Did not end**: {found['error']}"
        else:
            yield from _SECTIONS[part.name](found)
        yield f"Took {found['seconds']:.0f} s."
    yield _SEND


def _device(machine: Found) -> str:
    device = machine.get("device")
    if device is None:
        return "an unknown device"
    return device["kind"] if device["num_devices"] == 1 else f"{device['num_devices']} x {device['kind']}"


def _verdict(document: Mapping[str, Any]) -> str:
    problems: Sequence[str] = document["problems"]
    if not problems:
        return "All checks passed."
    lines = "\n".join(f"- {problem}" for problem in problems)
    kernels = document["without_kernels"]
    after = (
        f"\n\nThe parts after the second one ran without {', '.join(kernels)}: XLA computed in its place."
        if kernels
        else ""
    )
    return f"**{len(problems)} problems**:\n\n{lines}{after}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in lines)


def _machine(found: Found) -> Iterator[str]:
    machine, device = found["machine"], found["device"]
    rows = [
        ("time", found["time"]),
        ("tree", found["tree"] or "–"),
        ("device", f"{device['num_devices']} x {device['kind']} ({device['platform']})"),
        ("device memory", "–" if found["device_memory_bytes"] is None else shown_bytes(found["device_memory_bytes"])),
        ("driver", found["driver"] or "–"),
        ("native kernels", device["why_no_native_kernels"] or ("yes" if device["platform"] == "cpu" else "–")),
        ("system", machine["system"]),
        ("CPU", f"{machine['cpus']} of {machine['cpu']}"),
        ("memory", shown_bytes(machine["memory_bytes"])),
        ("load average", f"{machine['load_average']:.1f}"),
        *found["versions"].items(),
        *found["accelerator_packages"].items(),
    ]
    yield _table(("what", "value"), list(dict(rows).items()))


def _kernels(found: Found) -> Iterator[str]:
    yield (
        "Each kernel ran alone, in the ops that it computes, at the widths of the model. The columns say how "
        "far its results are from XLA's in float32 on the CPU, by root mean square and at most; how many have other "
        "bits in a second run; and whether NaN in idle rows and large numbers in padding leave the others as they are."
    )
    columns = ("kernel", "step", "numbers", "relative", "allowed", "largest", "other bits", "stays out", "right")
    yield _table(columns, [_kernel_row(check) for check in found["checks"]])


def _kernel_row(check: Mapping[str, Any]) -> Sequence[object]:
    rows, tokens = check["shape"]
    step = f"{check['step']} {rows} x {tokens}"
    if check["distance"] is None:
        return (check["kernel"], step, check["numbers"], "–", "–", "–", "–", "–", f"**no**: {check['failure']}")
    distance = check["distance"]
    return (
        check["kernel"],
        step,
        check["numbers"],
        _small(distance["relative"]),
        _small(check["allowed"]),
        _small(distance["largest"]),
        check["num_unequal"],
        "yes" if check["is_closed"] else "**no**",
        "yes" if check["is_right"] else "**no**",
    )


def _small(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.1e}"


def _demo(found: Found) -> Iterator[str]:
    rows = [(name, check["text"], "yes" if check["is_right"] else "**no**") for name, check in found["checks"].items()]
    yield _table(("check", "found", "right"), rows)


def _speed(found: Found) -> Iterator[str]:
    model = found["model"]
    yield (
        f"{model['name']}, {model['quantize'] or model['dtype']}, {model['slots']} slots; ready after "
        f"{found['start_seconds']:.0f} s. *Host* is the part of a step in which the host does not wait for the device: "
        "it plans, dispatches and books while the device computes. *Plan* is `roost plan`'s bound with full windows, "
        "*roofline* that of what ran; both are of the data sheet."
    )
    yield _table(_DECODE, [_decode_row(row) for row in found["decode"]])
    if found["prefill"]:
        yield _table(_PREFILL, [_prefill_row(row) for row in found["prefill"]])
    memory = found["memory"]
    rows = [("slots", memory["slots"]), ("slots by plan", memory["planned_slots"] or "–")]
    rows += [(text, "–" if memory[name] is None else shown_bytes(memory[name])) for name, text in _MEMORY.items()]
    yield _table(("memory", "value"), rows)


def _decode_row(row: Mapping[str, Any]) -> Sequence[object]:
    name = f"{row['requests']} {'sampled' if row['is_sampled'] else 'greedy'}"
    step, roofline = row["step_ms"], row["roofline_ms"]
    times = (step, row["host_ms"], row["plan_ms"], roofline)
    return (name, _rate(row["tokens_per_s"]), *map(_ms, times), _share(roofline, step))


def _prefill_row(row: Mapping[str, Any]) -> Sequence[object]:
    prompt, roofline = row["prompt_ms"], row["roofline_ms"]
    return (f"{row['tokens']} tokens", _rate(row["tokens_per_s"]), _ms(prompt), _ms(roofline), _share(roofline, prompt))


def _job(found: Found) -> Iterator[str]:
    result = found["result"]
    yield "32 requests at once, each of 512 prompt and 128 generated tokens, greedy, with `roost serve`'s defaults."
    rows = [
        ("duration, s", f"{result['duration_s']:.1f}"),
        ("requests/s", f"{result['requests_per_s']:.2f}"),
        ("generated tokens/s", _rate(result["output_tokens_per_s"])),
        ("time to first token, p50 and p99, ms", _percentiles(result["ttft_ms"])),
        ("between tokens, p50 and p99, ms", _percentiles(result["itl_ms"])),
    ]
    yield _table(("what", "value"), rows)


def _percentiles(found: Mapping[str, float] | None) -> str:
    return "–" if not found else f"{_ms(found['p50'])}, {_ms(found['p99'])}"


def _profile(found: Found) -> Iterator[str]:
    steps = found["tokens_per_request"]
    busy = found["busy_seconds"]
    seconds = found["steps_seconds"]
    share = "" if busy is None else f"; the device was busy for {busy / seconds:.0%} of the time"
    yield (
        f"{found['steps']} dispatches with {found['requests']} requests, {steps} tokens each, "
        f"{1e3 * seconds / max(steps, 1):.2f} ms a token{share}. "
        f"The folder `{found['folder']}` has the whole profile."
    )
    rows = [(f"`{op['name'][:80]}`", f"{1e3 * op['seconds']:.2f}", op["num_runs"]) for op in found["operations"]]
    yield _table(("operation", "total, ms", "times"), rows)


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _share(bound: float | None, measured: float | None) -> str:
    return "–" if bound is None or not measured else f"{bound / measured:.2f}"


_SECTIONS: Final[Mapping[str, Callable[[Found], Iterator[str]]]] = {
    "machine": _machine,
    "kernels": _kernels,
    "demo": _demo,
    "speed": _speed,
    "job": _job,
    "profile": _profile,
}
