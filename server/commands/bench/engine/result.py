"""Result of `roost bench engine` as numbers and a table."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich.console import Group

from ..latency import RequestTrace, in_ms, latencies_ms
from ..report import interruption, make_table, milliseconds, pick, rate, report
from .driver import Driver, MeasuredStep


def summarize(workload: str, driver: Driver) -> dict[str, Any]:
    """Returns the numbers of one run.

    Tokens per second cover the whole run, except for `decode`: its tokens per second and times between tokens cover the
    steps in which all requests decode and no prompt is prefilled. Rates that a workload does not measure are None.
    """
    seconds = max(driver.clock() - driver.started_s, 1e-9)
    decode = [step for step in driver.steps if step.is_decode]
    overall = driver.generated_tokens / seconds
    generated = {"prefill": None, "decode": full_batch_rate(decode), "mixed": overall}
    traces = driver.traces()
    latencies = latencies_ms(traces)
    if workload == "decode":
        latencies["itl_ms"] = in_ms(gaps_of_all(traces))
    return {
        "duration_s": seconds,
        "steps": len(driver.steps),
        "prompt_tokens": driver.prompt_tokens,
        "generated_tokens": driver.generated_tokens,
        "prompt_tokens_per_s": None if workload == "decode" else driver.prompt_tokens / seconds,
        "generated_tokens_per_s": generated[workload],
        "decode_step_ms": in_ms(step.seconds / step.rounds for step in decode if step.rounds),
        **latencies,
    }


def gaps_of_all(traces: Sequence[RequestTrace]) -> Iterator[float]:
    """Yields the seconds between tokens, from the time when every request has its first one."""
    start = max((trace.token_times_s[0] for trace in traces), default=0.0)
    for trace in traces:
        yield from (after - before for before, after in pairwise(trace.token_times_s) if before >= start)


def full_batch_rate(steps: Sequence[MeasuredStep]) -> float | None:
    """Returns the tokens per second over the steps with the maximum number of requests."""
    most = max((step.rows for step in steps), default=0)
    full = [step for step in steps if step.rows == most]
    seconds = sum(step.seconds for step in full)
    return sum(step.tokens for step in full) / seconds if seconds else None


def table(document: Mapping[str, Any]) -> Group:
    """Returns the medians over the runs, with a column for each workload."""
    workloads = document["result"]["workloads"]
    columns = [workloads[name]["median"] for name in workloads]
    rows = [[name, *cells] for name, cells in _rows(columns) if any(cell != "–" for cell in cells)]
    return report(_title(document), [make_table(list(workloads), rows)], interruption(document["interrupted"]))


def _title(document: Mapping[str, Any]) -> str:
    model, device, options = document["model"], document["device"], document["options"]
    where = f"{model['name']}, {model['quantize'] or model['dtype']}, on {device['kind']}"
    load = f"{document['result']['concurrency']} of {model['slots']} slots in use, medians of {options['repeat']}"
    return f"{where}, {load}\neach with {options['input_len']:,} prompt and {options['output_len']:,} generated tokens"


def _rows(columns: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    yield "prompt tokens/s", [rate(column["prompt_tokens_per_s"]) for column in columns]
    yield "generated tokens/s", [rate(column["generated_tokens_per_s"]) for column in columns]
    for key, name, percents in (
        ("decode_step_ms", "decode step, ms", ("p50", "p99")),
        ("ttft_ms", "time to first token, ms", ("p50", "p99")),
        ("itl_ms", "between tokens (ITL), ms", ("p50", "p99")),
    ):
        for percent in percents:
            yield f"{name}, {percent}", [milliseconds(pick(column, key, percent)) for column in columns]
