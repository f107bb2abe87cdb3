"""Results for readers: a table on the terminal, a page in Markdown, and bars."""

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from judge import Agreement, Row, agreements, judge
from plan import FAMILIES, JOBS, TARGET_TASK, TARGETS, Goal, goals
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
from svg import box, picture, text

HEAD = ("", "ours", "theirs", "ratio", "goal", "stretch", "")
BAR = 34.0
"""Height of a bar in the picture, with its name above it and the space below."""

# --- numbers for readers


def number(value: float | None, unit: str) -> str:
    """Returns three significant digits with separators; a dash for None."""
    if value is None:
        return "–"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def ratio(value: float | None, goal: Goal) -> str:
    """Returns a ratio or a bound in its goal's format."""
    if value is None:
        return "–"
    if goal.shown == "x":
        return f"{value:.2f}x"
    if goal.shown == "%":
        return f"{100 * value:.1f} %"
    return number(value, goal.shown)


def bound(value: float | None, goal: Goal) -> str:
    if value is None:
        return "–"
    if goal.shown == "x":
        text = f"{value:g}x"
    elif goal.shown == "%":
        text = f"{100 * value:g} %"
    else:
        text = f"{value:,g} {goal.shown}"
    return f"{'≤' if goal.lower else '≥'} {text}"


def verdict(row: Row) -> str:
    if row.verdict == "missed":
        return f"missed by {100 * row.short_by:.0f} %"
    return {"stretch": "stretch reached", "reached": "reached", "told": "", "unknown": row.why}[row.verdict]


def cells(row: Row) -> tuple[str, ...]:
    """Returns a row as texts in the order of `HEAD`."""
    goal = row.goal
    return (
        goal.title,
        number(row.ours, goal.unit),
        number(row.theirs, goal.unit),
        ratio(row.ratio, goal),
        bound(goal.at_least, goal),
        bound(goal.stretch, goal),
        verdict(row),
    )


# --- the terminal


def tables(document: Mapping[str, Any]) -> list[Table]:
    """Returns the jobs, the goals, and the contestants that agree with themselves."""
    found = [job_table(title, rows) for title, rows in job_tables(document)]
    goal_table = Table(title="Roost and its peers: medians, and ratios within a round")
    for place, name in enumerate(HEAD):
        goal_table.add_column(name, justify="right" if 1 <= place <= 5 else "left")
    colors = {"stretch": "green", "reached": "green", "missed": "red", "told": "", "unknown": "yellow"}
    for row in judge(document, goals()):
        goal_table.add_row(*cells(row), style=colors[row.verdict])
    found += [goal_table] if goal_table.row_count else []
    if agreed := agreements(document):
        table = Table(title="Alone and in one batch: the same?")
        head, *lines = agreement_rows(agreed)
        for name in head:
            table.add_column(name)
        for line in lines:
            table.add_row(*line)
        found.append(table)
    return found


def job_table(title: str, rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    for place, name in enumerate(JOB_HEAD):
        table.add_column(name, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    return table


def job_tables(document: Mapping[str, Any]) -> Iterator[tuple[str, list[Sequence[str]]]]:
    """Yields title and rows of every job that was measured, the fastest contestant first."""
    for task, title in JOBS.items():
        by_entrant = document["runs"].get(task, {})
        found = [(document["entrants"][name]["title"], runs) for name, runs in by_entrant.items()]
        found.sort(key=lambda pair: median(pair[1], "job_s") or 0.0)
        if found:
            rate = median(found[0][1], "rate")
            yield (
                title if rate is None else f"{title}: {rate:.2f} requests per second",
                [[name, *(number(median(runs, field), "").strip() for field in LATENCIES)] for name, runs in found],
            )


def agreement_rows(agreed: Sequence[Agreement]) -> Iterator[Sequence[str]]:
    """Returns a head and a row for each contestant."""
    yield ["", *(f"{length} tokens" for length in agreed[0].lengths), "new tokens handed out"]
    for one in agreed:
        handed = "all" if set(one.handed_out) <= {one.of} else f"{', '.join(map(str, one.handed_out))} of {one.of}"
        yield [one.title, *(judgement(*pair) for pair in zip(one.same, one.apart, strict=True)), handed]


def judgement(same: bool, apart: float) -> str:
    """Maximum difference of log-probabilities; rounding in float32 changes them by far less than a thousandth."""
    tokens = "same tokens" if same else "other tokens"
    logprobs = "the same" if apart == 0 else f"{apart:.1g} apart"
    return f"{'' if same and apart < 1e-3 else 'WRONG: '}{tokens}, logprobs {logprobs}"


# --- the page


def markdown(document: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """Returns the whole page.

    Args:
      figures: Paths of pictures, relative to the page, by title.
    """
    blocks = [
        "# Roost and its peers",
        command(document),
        INTRODUCTION,
        where(document),
        *job_blocks(document),
        *(f"![{title}]({path})" for title, path in figures.items()),
        "## Goals",
        markdown_table([HEAD, *(cells(row) for row in judge(document, goals()))]),
        NOTES,
        *number_blocks(document),
        "## Who took part",
        markdown_table([("", "parameters", "type", "seconds to load", "versions"), *entrant_rows(document)]),
    ]
    if agreed := agreements(document):
        blocks += ["## Alone and in one batch", AGREEMENT, markdown_table(list(agreement_rows(agreed)))]
    return "\n\n".join(blocks) + "\n"


def number_blocks(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields the page's part about phases; nothing if none was measured."""
    if rows := list(numbers(document)):
        yield "## Every number"
        yield markdown_table([("", "work", *MEASURED.values(), "GB at most"), *rows])


def job_blocks(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields the page's part about jobs; nothing if none was measured."""
    for place, (title, rows) in enumerate(job_tables(document)):
        if place == 0:
            yield from ("## Jobs", JOB_NOTES)
        yield f"### {title[:1].upper()}{title[1:]}"
        yield markdown_table([JOB_HEAD, *rows])


INTRODUCTION = """\
One command measures all of this: it makes an environment for every peer from locked requirements, loads all that
compete, and lets them work in turn, in rounds, while the others are stopped. So each ratio is one within a round, of
two runs that follow each other on the same machine; the tables have medians over the rounds. All weights are random.
Jobs are what users have: prompts and tokens together, over HTTP. Phases explain them: decode once all prompts are read,
and prefill with nothing beside it. There, Roost is still measured over HTTP, while peers are loops around their
libraries, without a server: their best case."""

JOB_NOTES = """\
Each request has a prompt of its own. Every server has 32 slots and its own defaults otherwise, except that vLLM gets
all cores, and llama.cpp's server enough threads for its connections. All have the same client: that of `roost bench
serve`, which streams and shares the cores. Two contestants have no server and no client: transformers generates for a
job as one static batch, and vLLM's engine is stepped in its own process.
"Job" is the time from the first request to the last token. The time to first token counts from when a request was due;
the time between tokens is that between two pieces of a stream, and a piece may have several tokens. Lengths of mixed
loads are drawn so that their logarithms are uniform, the same for everybody. Poisson arrivals come at 80 % of the
capacity of the best peer, which is its requests per second at 32 at a time in the same round. Memory is the most that
server and client ever took, loading included, as the sum over their processes."""

NOTES = """\
- Decode: prompts of 512 tokens, then 128 new ones, greedy. Tokens per second count from when all requests have their
  first token to when the first one ends. Prefill: prompt tokens until the last request has its first token.
- "small" has width 768, 12 layers, 6 heads of 128, window 2048 and 32,000 tokens. vLLM and llama.cpp have no
  RecurrentGemma, so they run a Llama of the same size. Roost has 32 slots in all rows of small, however many run.
- 2B: prompts of 64 tokens, 24 new ones; memory is the most that server and client ever took, loading included.
- The bytes of a step are weights in int8 and the filled part of the state, once, at the speed at which the same threads
  read a gibibyte.
- Warm start: from the start of the process until `/health/ready` is 200, with a folder that holds all compiled
  programs.
- Under mixed load, 6 streams decode while prompts of 2048 tokens come one after the other. The quiet median is per
  token, the loaded p99 per event."""

AGREEMENT = """\
The model `nano` (5.9 million parameters) in float32 is asked for 16 new tokens after prompts of different lengths, one
by one and all in one batch. The distance is that of the log-probabilities of the first new token, among the 20
likeliest. "Handed out" is what a call of the sampler returns of the new tokens."""

LATENCIES: Mapping[str, str] = {
    "job_s": "job, s",
    "output_tokens_per_s": "output tok/s",
    "ttft_p50_ms": "first token p50, ms",
    "ttft_p99_ms": "p99, ms",
    "itl_p50_ms": "between tokens p50, ms",
    "itl_p99_ms": "p99, ms",
    "peak_gb": "GB at most",
}
JOB_HEAD = ("", *LATENCIES.values())

MEASURED: Mapping[str, str] = {
    "decode_tokens_per_s": "decode, tok/s",
    "prefill_tokens_per_s": "prefill, tok/s",
    "step_ms": "step, ms",
}


def command(document: Mapping[str, Any]) -> str:
    """Returns the command that measures what the page shows."""
    families = document["options"]["families"]
    only = f"--only {' '.join(families)} " if len(families) < len(FAMILIES) else ""
    return f"    python benchmarks/peers/run.py {only}--json peers.json --results FILE.md"


def where(document: Mapping[str, Any]) -> str:
    """Returns the machine, the day and the options."""
    machine, options = document["machine"], document["options"]
    memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB"
    load = f"load average {machine['load_average']:.2f} before"
    rounds = "1 round" if options["rounds"] == 1 else f"{options['rounds']} rounds"
    cores = f"{options['threads']} of {machine['cpus']} cores"
    flags = f" ({', '.join(machine['features'])})" if machine.get("features") else ""
    lines = [
        f"{machine['cpu']}{flags}, {cores}, {memory}, {machine['system']}; {load}.",
        f"{document['started'][:10]}, tree {document['tree']}, {rounds}, {document['seconds'] / 60:.0f} minutes.",
    ]
    if options["quick"]:
        lines.append("**A smoke run with short prompts: these numbers mean nothing.**")
    return "\n".join(lines)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def numbers(document: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """Returns the medians of every task with tokens per second."""
    for task, by_entrant in document["runs"].items():
        for name, runs in by_entrant.items():
            if not any(field in runs[0] for field in MEASURED):
                continue
            found = [median(runs, field) for field in (*MEASURED, "peak_gb")]
            yield [document["entrants"][name]["title"], task, *(number(value, "").strip() for value in found)]


def median(runs: Sequence[Mapping[str, Any]], field: str) -> float | None:
    values = [run[field] for run in runs if field in run]
    return statistics.median(values) if values else None


def entrant_rows(document: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for facts in document["entrants"].values():
        parameters = facts.get("parameters")
        versions = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())
        yield [
            facts["title"],
            "–" if parameters is None else f"{parameters:,}",
            facts.get("dtype", "–"),
            number(facts.get("load_s"), "").strip(),
            versions or facts.get("failure", "–"),
        ]


# --- the bars

PANELS: Mapping[str, tuple[Sequence[str], str]] = {
    "job, 8 requests of 512 + 128 tokens": (["job 8"], "output_tokens_per_s"),
    "job, 32 requests of 512 + 128 tokens": (["job 32"], "output_tokens_per_s"),
    "decode, 8 at a time": (["decode 8"], "decode_tokens_per_s"),
    "decode, 32 at a time": (["decode 32"], "decode_tokens_per_s"),
    "prefill, 8 at a time": (["decode 8", "prefill 8"], "prefill_tokens_per_s"),
}
"""Bars, and the tasks that measure them; the last one that was run counts."""


def draw(document: Mapping[str, Any]) -> str | None:
    """Returns bars of tokens per second as SVG, readable on light and dark pages; None if nothing was measured."""
    panels = {title: bars(document, *what) for title, what in PANELS.items()}
    panels = {title: found for title, found in panels.items() if found}
    if not panels:
        return None
    parts, y = [], 66.0
    for title, found in panels.items():
        parts.append(text(20, y, f"{title}: tokens per second"))
        for place, (name, value) in enumerate(found.items()):
            top, kind = y + 22 + BAR * place, "mark" if name.startswith("Roost") else "other"
            width = 340 * value / max(found.values())
            parts += [text(20, top, name, "small"), box(20, top + 5, max(width, 1), 12, kind)]
            parts.append(text(28 + width, top + 15, f"{value:,.0f}", "small"))
        y += 46 + BAR * len(found)
    machine = f"{document['machine']['cpu']}, {document['options']['threads']} cores"
    where = f"{document['started'][:10]}, tree {document['tree']}"
    parts += [
        text(20, 46, "More is better.", "small"),
        text(20, y - 10, machine, "small"),
        text(20, y + 6, where, "small"),
    ]
    return picture(440, y + 20, "Roost beside its peers", parts)


def draw_targets(document: Mapping[str, Any]) -> str | None:
    """Returns the time between tokens against throughput as SVG, a point for each target; None without two points."""
    points = target_points(document)
    if len(points) < 2:
        return None
    left, bottom, width, height = 90.0, 300.0, 560.0, 220.0
    most_x, most_y = (1.1 * max(axis) for axis in zip(*points.values(), strict=True))
    places = {name: (left + width * x / most_x, bottom - height * y / most_y) for name, (x, y) in points.items()}
    way = " L".join(f"{x:.1f},{y:.1f}" for x, y in sorted(places.values()))
    parts = [
        text(20, 50, "Milliseconds between tokens, p99, against output tokens per second", "small"),
        f'<path class="line" d="M{left:g},{bottom - height:g} V{bottom:g} H{left + width:g}"/>',
        f'<path class="curve ours" d="M{way}"/>',
    ]
    for name, (x, y) in places.items():
        rate, milliseconds = points[name]
        parts += [
            box(x - 4, y - 4, 8, 8, "mark"),
            text(x - 10, y - 10, name, anchor="end"),
            text(x - 10, y + 5, f"{rate:,.0f} tok/s, {milliseconds:,.0f} ms", "small", "end"),
        ]
    return picture(700, bottom + 20, "Targets for the time between tokens", parts)


def target_points(document: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Returns output tokens per second and the 99th percentile between tokens in milliseconds, by setting."""
    found = {}
    for name, setting in TARGETS.items():
        runs = document["runs"].get(TARGET_TASK, {}).get(name, [])
        rate, milliseconds = (median(runs, field) for field in ("output_tokens_per_s", "itl_p99_ms"))
        if rate is not None and milliseconds is not None:
            found[setting] = rate, milliseconds
    return found


def bars(document: Mapping[str, Any], tasks: Sequence[str], field: str) -> dict[str, float]:
    """Returns medians by contestant, the largest first, without the bare engine."""
    found = {}
    for task in tasks:
        for name, runs in document["runs"].get(task, {}).items():
            value = median(runs, field)
            if value is not None and name != "engine int8":
                found[document["entrants"][name]["title"]] = value
    return dict(sorted(found.items(), key=lambda item: -item[1]))
