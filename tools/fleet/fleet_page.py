"""Writes the page and the picture of fleet.py."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from results_page import paragraph, table, where
from svg import chart, picture, text

NEVER_S: Final = 999.0
"""Time to first token of a request that was given up."""

_STYLES: Final = (("ours", ""), ("theirs", ""), ("ours", "7 4"), ("theirs", "3 3"))
"""Class and dashes of each curve of a panel."""


def page(document: Mapping[str, Any]) -> str:
    """Returns the page for readers."""
    parts = [
        "# A fleet of simulated replicas",
        "    python tools/fleet/fleet.py --json benchmarks/fleet.json --results benchmarks/fleet.md",
        *_of_servers(document["servers"]),
        *_of_model(document["model"]),
    ]
    return "\n\n".join(parts) + "\n"


def _of_servers(part: Mapping[str, Any]) -> Iterator[str]:
    results, chip = part["results"], part["results"]["chip"]
    yield "## Servers"
    yield paragraph(
        f"""{where(part["machine"])}; {part["started"][:10]}, tree {part["tree"]}. Each replica is a `roost
        serve random:2b --simulate` with {chip["slots"]} slots, a step of {1e3 * chip["step_s"]:g} ms, 8,000
        prompt tokens/s and room for {results["cached_prefixes"]} prefixes; its process has
        {results["resident_mb"]:.0f} MB of its own. Requests have one of 64 prefixes of 1,024 tokens, drawn by
        Zipf's law, a question of 32 tokens, and a reply of 64 to 192. They arrive at random, as many as take 70
        % of the time of replicas that have all prefixes. Times are seconds; the first 5 s of each load are left
        out."""
    )
    yield "### The model against servers"
    yield paragraph(
        """The same requests, to replicas in turn. The last column is the share of this machine's processors
        that servers and clients took: they must not matter."""
    )
    yield table(
        ["replicas", "", "tokens/s", "first token, mean", "p99", "whole reply, mean", "hits", "processors"],
        [row for each in results["calibration"] for row in _calibration_rows(each)],
    )
    yield "### Routing, four replicas"
    times = ("ttft_p50_s", "ttft_p99_s", "e2e_mean_s")
    yield table(
        ["by", "how", "hits", "first token p50", "p99", "whole reply, mean"],
        [
            [each["by"], each["way"], _percent(each["hit_share"]), *_seconds(each, *times)]
            for each in results["routing"]
        ],
    )
    yield "### Replicas that end, four behind HAProxy"
    yield paragraph(
        """Half of the load; no client tries again. HAProxy asks `/health/ready` every 0.2 s, and tries
        another replica until a response has started."""
    )
    yield table(["what", "requests", "whole replies", "cut", "first token p99"], _rows(results["faults"], "cut"))
    yield "### More than fits, two replicas with a queue of eight"
    yield paragraph("One and a half times the load that fits. Tries are those of clients, per request.")
    yield table(["what", "requests", "whole replies", "tries", "first token p99"], _rows(results["overload"], "tries"))


def _rows(entries: Sequence[Mapping[str, Any]], name: str) -> list[list[str]]:
    return [
        [
            each["what"],
            f"{each['requests']:,}",
            _percent(each["done"] / each["requests"]),
            f"{each[name]:,.2f}" if name == "tries" else f"{each[name]:,}",
            *_seconds(each, "ttft_p99_s"),
        ]
        for each in entries
    ]


def _calibration_rows(entry: Mapping[str, Any]) -> Iterator[list[str]]:
    names = ("tokens_per_s", "ttft_mean_s", "ttft_p99_s", "e2e_mean_s")
    for name in ("servers", "model"):
        found = entry[name]
        share = _percent(entry["cpu_share"]) if name == "servers" else ""
        numbers = [f"{found['tokens_per_s']:,.0f}", *_seconds(found, *names[1:]), _percent(found["hit_share"])]
        yield [str(entry["replicas"]), name, *numbers, share]
    ratios = [f"{entry['model'][name] / entry['servers'][name]:.2f}" for name in names]
    yield ["", "model ÷ servers", *ratios, "", ""]


def _of_model(part: Mapping[str, Any]) -> Iterator[str]:
    results = part["results"]
    yield "## The model"
    yield paragraph(
        f"""A simulation by discrete events of replicas of 16 slots, a step of 20 ms and 8,000 prompt tokens/s,
        with the requests of fleet.py; {part["started"][:10]}, tree {part["tree"]}. There are 16 prefixes for
        each replica, which has room for {results["cached_prefixes"]}."""
    )
    yield "![Load that fits, hot prefixes, autoscaling and reclaims](fleet.svg)"
    yield "### How many replicas a load needs"
    yield paragraph("Requests per second of each replica at which 99 % of the first tokens come within a second.")
    yield _matrix(results["need"], "router", "replicas", "requests_per_s", "{:,}", "{:.2f}")
    yield "### What fails first"
    yield "First tokens (p99, s) of 100 replicas at 70 %, by the share of requests that one prefix has on top:"
    yield _matrix(results["hot"], "router", "share", "ttft_p99_s", "{:.0%}", "{:,.2f}")
    yield paragraph(
        """First tokens (p99, seconds) while the load of 40 replicas doubles within a minute, by the share of
        slots that the autoscaler aims at and the seconds that a replica takes to start. It looks every 15 s.
        Clients try four times."""
    )
    yield _matrix(results["scaling"], "target", "start_s", "ttft_p99_s", "{:g} s", "{:,.2f}")
    yield "Requests given up meanwhile:"
    yield _matrix(results["scaling"], "target", "start_s", "failed", "{:g} s", "{:.1%}")
    yield paragraph(
        """Replies of 1,024 to 3,072 tokens (41 s) that a reclaim cuts, of all requests, by the seconds of
        notice and the reclaims of each replica per hour. A replica with notice takes no more requests."""
    )
    yield _matrix(results["spot"], "notice_s", "per_hour", "cut", "{:g} / h", "{:.2%}")


def _matrix(entries: Sequence[Mapping[str, Any]], row: str, column: str, value: str, head: str, cell: str) -> str:
    columns = list(dict.fromkeys(each[column] for each in entries))
    rows = list(dict.fromkeys(each[row] for each in entries))
    found = {(each[row], each[column]): each[value] for each in entries}
    return table(
        [row.removesuffix("_s"), *(head.format(each) for each in columns)],
        [[str(each), *(_shown(found[each, other], cell) for other in columns)] for each in rows],
    )


def _seconds(entry: Mapping[str, Any], *names: str) -> list[str]:
    return [_shown(entry[name], "{:.3f}" if entry[name] < 10 else "{:.1f}") for name in names]


def _shown(value: float, form: str) -> str:
    """Returns a value, or that it stands for requests that were given up."""
    return "given up" if value >= NEVER_S else form.format(value)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0.99 < share < 1 else f"{100 * share:.0f} %"


# --- the picture


def picture_of(results: Mapping[str, Any]) -> str:
    """Returns the curves of the model."""
    parts = []
    for number, (title, name, below, is_log) in enumerate(_PANELS):
        curves, labels = _curves(results[name], *_CURVES[name])
        plane, top = (60.0, 310.0 * number + 70, 240.0, 200.0), 310 * number + 50
        parts += [text(20, top, title)]
        parts += chart(plane, curves, labels, below, _STYLES, is_log=is_log, most=NEVER_S)
    return picture(480, 310 * len(_PANELS) + 30, "A simulated fleet", parts)


_PANELS: Final = (
    ("Requests/s of each replica, p99 within 1 s", "need", "replicas", False),
    ("First token p99, s, 100 replicas", "hot", "share of the hottest prefix, %", True),
    ("First token p99, s, load doubles", "scaling", "seconds to start a replica", True),
    ("Replies of 41 s that are cut, %", "spot", "reclaims of each replica per hour", False),
)
"""Title of each panel, its results, the name of its horizontal axis, and whether its values are logarithms."""

_CURVES: Final = {
    "need": ("router", "replicas", "requests_per_s", 1.0, 1.0),
    "hot": ("router", "share", "ttft_p99_s", 100.0, 1.0),
    "scaling": ("target", "start_s", "ttft_p99_s", 1.0, 1.0),
    "spot": ("notice_s", "per_hour", "cut", 1.0, 100.0),
}
"""Row, column and value of each panel, and factors of column and value."""


def _curves(
    entries: Sequence[Mapping[str, Any]], row: str, column: str, value: str, across: float, up: float
) -> tuple[Mapping[str, Sequence[float]], Sequence[str]]:
    curves: dict[str, list[float]] = {}
    for each in entries:
        name = str(each[row]) if row == "router" else f"{row.removesuffix('_s')} {each[row]:g}"
        curves.setdefault(name, []).append(up * each[value])
    places = dict.fromkeys(each[column] for each in entries)
    return curves, [f"{across * place:g}" for place in places]
