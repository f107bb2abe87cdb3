"""Result of `roost bench serve` as numbers, tables and curves."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Group

from ..latency import RequestTrace, latencies_ms
from ..plot import draw_latencies
from ..report import interruption, make_table, milliseconds, number, pick, rate, report
from .goodput import Objective
from .options import ServeBenchOptions

_MAX_LAG_MS: Final = 20.0
"""Lag in milliseconds above which the report warns that the client itself was late."""

_TIMES: Final = {
    "ttft_ms": "time to first token",
    "itl_ms": "between tokens (ITL)",
    "tpot_ms": "per token after the first (TPOT)",
    "e2e_ms": "whole request (E2E)",
}


def summarize(traces: Sequence[RequestTrace], seconds: float, options: ServeBenchOptions) -> dict[str, Any]:
    """Returns all numbers of a result. Rates and times include only successful requests.

    Args:
      traces: Traces of the requests that have ended, successful or not.
      seconds: Time from the first request to the end of the last one.
      options: ServeBenchOptions of the benchmark.
    """
    done = [trace for trace in traces if trace.failure is None]
    failures = Counter(trace.failure for trace in traces if trace.failure is not None)
    counts = {"planned": options.num_prompts, "completed": len(done), "failed": len(traces) - len(done)}
    uncounted = sum(trace.output_tokens is None or trace.prompt_tokens is None for trace in done)
    inputs = None if uncounted else sum(trace.prompt_tokens or 0 for trace in done)
    outputs = None if uncounted else sum(trace.output_tokens or 0 for trace in done)
    return {
        "duration_s": seconds,
        "requests": {**counts, "unfinished": options.num_prompts - len(traces), "without_usage": uncounted},
        "failures": dict(failures.most_common()),
        "requests_per_s": len(done) / seconds,
        "input_tokens": inputs,
        "output_tokens": outputs,
        "input_tokens_per_s": None if inputs is None else inputs / seconds,
        "output_tokens_per_s": None if outputs is None else outputs / seconds,
        **latencies_ms(done),
        "goodput": _goodput(traces, seconds, options.goodput),
        "client_lag_ms": max((trace.lag_s * 1e3 for trace in traces), default=0.0),
    }


def _goodput(traces: Sequence[RequestTrace], seconds: float, objective: Objective | None) -> Mapping[str, Any] | None:
    if objective is None:
        return None
    met = sum(objective.is_met_by(trace) for trace in traces)
    return {
        "objective": str(objective),
        "requests": met,
        "share": met / len(traces) if traces else None,
        "requests_per_s": met / seconds,
    }


def tables(title: str, result: Mapping[str, Any], interrupted: bool) -> Group:
    """Returns the tables that are printed."""
    columns = ["mean", "p50", "p90", "p99", "max"]
    rows = [[name, *(milliseconds(pick(result, key, column)) for column in columns)] for key, name in _TIMES.items()]
    rates, times = make_table([""], _rate_rows(result)), make_table(columns, rows, "milliseconds")
    return report(title, [rates, times], [*interruption(interrupted), *_notes(result)])


def _rate_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    requests = result["requests"]
    yield "requests completed", f"{requests['completed']:,} of {requests['planned']:,}"
    if requests["failed"]:
        yield "requests failed", f"{requests['failed']:,}"
    yield "duration", f"{number(result['duration_s'], 2)} s"
    yield "requests/s", number(result["requests_per_s"], 2)
    yield "input tokens/s", rate(result["input_tokens_per_s"])
    yield "output tokens/s", rate(result["output_tokens_per_s"])
    if goodput := result["goodput"]:
        share = "–" if goodput["share"] is None else f"{100 * goodput['share']:.0f} %"
        yield f"goodput, requests/s ({goodput['objective']})", f"{number(goodput['requests_per_s'], 2)}, {share}"


def _notes(result: Mapping[str, Any]) -> Iterator[str]:
    for reason, count in result["failures"].items():
        yield f"{count:,} × {reason}"
    if result["requests"]["without_usage"]:
        yield "the server does not report `usage` in its streams, so tokens per second are not known"
    if result["client_lag_ms"] > _MAX_LAG_MS:
        yield f"this client sent a request up to {result['client_lag_ms']:,.0f} ms late: its machine is too busy"


def draw(title: str, traces: Sequence[RequestTrace]) -> bytes | None:
    """Returns curves of the latencies of successful requests, as SVG; None if there are none."""
    done = [trace for trace in traces if trace.failure is None]
    panels = {
        "time to first token": [trace.ttft_s * 1e3 for trace in done if trace.ttft_s is not None],
        "between tokens": [gap * 1e3 for trace in done for gap in trace.gaps_s],
        "whole request": [trace.e2e_s * 1e3 for trace in done],
    }
    known = {name: values for name, values in panels.items() if values}
    return draw_latencies(title, known) if known else None
