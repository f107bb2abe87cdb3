"""Draws the documentation's pictures: what Roost is, the rooms and their imports, a request's way, sizes and speeds.

    python tools/draw_pictures.py

The pictures are SVG with colours for light and dark pages. `tests/tools/test_documentation.py` fails when one differs
from the code.
"""

import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Final, NamedTuple

from roost.engine.model.config import PRESETS
from roost.engine.model.state import state_bytes

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent / "programs")]  # for an interpreter with -P
from compiled_sources import imported
from svg import arrow, box, chart, picture, text

ROOT: Final = Path(__file__).parents[1]
FOLDER: Final = ROOT / "docs" / "pictures"

type Edges = Mapping[str, set[str]]
"""Names to the names that they point at."""


# --- what Roost is

_WIDTH: Final = 480.0
_MARGIN: Final = 16.0

CLIENTS: Final = ("OpenAI's API", "Anthropic's API", "chat page", "Python")
SLOTS: Final = ("12", "900", "4 K", "50 K", "3 M", "80", "7 K", "free")
"""Tokens of the requests that the picture shows, one a slot."""
COPIES: Final = ("prefix cache", "conversations", "forks", "state files")
DEVICES: Final = ("TPU", "GPU", "CPU")


def draw_overview() -> str:
    """Returns the picture, narrow enough that a phone shows words at their size."""
    mebibytes = {name: state_bytes(PRESETS[name], 2) / 2**20 for name in ("2b", "9b")}
    sizes = ", ".join(f"{size:.1f} MiB for {name.upper()}" for name, size in mebibytes.items())
    parts = [
        *_row(46, 30, CLIENTS),
        *_arrows(76, 104, len(CLIENTS)),
        box(_MARGIN, 106, _WIDTH - 2 * _MARGIN, 136),
        text(30, 128, "Continuous batching: each step serves all slots"),
        *_slots(140),
        text(30, 211, "Tokens of each request so far. Its slot never grows:", "small"),
        text(30, 228, f"{sizes}, at any length.", "small"),
        *_arrows(242, 270, len(COPIES)),
        *_row(272, 30, COPIES),
        text(_WIDTH / 2, 320, "copies of one slot", "small", "middle"),
        *_row(338, 30, DEVICES, "step"),
        text(_WIDTH / 2, 386, "JAX, with Pallas kernels and native ones for CPUs", "small", "middle"),
    ]
    return picture(_WIDTH, 400, "One slot for each request, all of one size", parts)


def _row(y: float, height: float, words: Sequence[str], kind: str = "box") -> Iterator[str]:
    """Yields boxes with words, side by side over the whole width."""
    for (left, width), word in zip(_columns(len(words)), words, strict=True):
        yield box(left, y, width, height, kind)
        yield text(left + width / 2, y + height / 2 + 5, word, anchor="middle")


def _arrows(top: float, bottom: float, count: int) -> Iterator[str]:
    for left, width in _columns(count):
        yield arrow(left + width / 2, top, left + width / 2, bottom)


def _columns(count: int) -> Iterator[tuple[float, float]]:
    """Yields the left edge and the width of columns with gaps between them."""
    gap = 8.0
    width = (_WIDTH - 2 * _MARGIN - gap * (count - 1)) / count
    yield from ((_MARGIN + (width + gap) * number, width) for number in range(count))


def _slots(y: float) -> Iterator[str]:
    """Yields the slots, of which the last one is free."""
    size = 47.0
    for number, tokens in zip(itertools.count(), SLOTS, strict=False):
        left, is_free = 30 + number * (size + 6), tokens == "free"
        yield box(left, y, size, size, "box" if is_free else "mark")
        yield text(left + size / 2, y + size / 2 + 5, tokens, "small" if is_free else "inside", "middle")


# --- the rooms


def room_of(module: str) -> str:
    """Returns the room of a module, both as paths from the root: a folder of `server` or `engine`, or a file there.

    Each feature is a room of its own. Its command stands on the server, and so above the rest of it.
    """
    parts = module.split("/")
    if parts[0] == "kernels":
        return "kernels"
    if parts[:2] == ["server", "features"] and parts[2:] not in ([], ["index"]):
        return "/".join(parts[:4] if parts[3:4] == ["command"] else parts[:3])
    return "/".join(parts[:2]) if len(parts) > 1 else f"{parts[0]} (door)"


def room_imports() -> Edges:
    """Returns the rooms and those that each imports from."""
    edges: dict[str, set[str]] = defaultdict(set)
    for path in (each for room in ("server", "engine", "kernels") for each in sorted((ROOT / room).rglob("*.py"))):
        here = room_of(_module(path))
        for there in map(room_of, map(_module, imported(path))):
            edges[there] |= set()
            if here != there:
                edges[here].add(there)
    return edges


def _module(path: Path) -> str:
    path = path.relative_to(ROOT)
    return path.parent.as_posix() if path.name == "__init__.py" else path.with_suffix("").as_posix()


def without_detours(edges: Edges) -> Edges:
    """Returns the edges that no longer way replaces: a transitive reduction."""
    reached: dict[str, set[str]] = {}
    for name in TopologicalSorter(edges).static_order():
        reached[name] = edges[name].union(*(reached[target] for target in edges[name]))
    return {
        name: {each for each in targets if not any(each in reached[other] for other in targets - {each})}
        for name, targets in edges.items()
    }


def levels(edges: Edges) -> list[list[str]]:
    """Returns the rooms in rows, the top one first: each right below the lowest room that imports it.

    Raises:
      CycleError: The rooms import each other in a circle.
    """
    importers = {name: {other for other in edges if name in edges[other]} for name in edges}
    sorter = TopologicalSorter(importers)
    sorter.prepare()
    rows: list[list[str]] = []
    while ready := sorter.get_ready():
        rows.append(sorted(ready))
        sorter.done(*ready)
    return rows


def draw_rooms() -> str:
    """Returns the picture of the rooms: arrows are imports, and all of them point down. Features have short names."""
    edges = without_detours(room_imports())
    width, step, y0 = 1080.0, 58.0, 60.0
    centres: dict[str, tuple[float, float]] = {}
    parts: list[str] = []
    for number, row in enumerate(levels(edges)):
        space = width / len(row)
        above = {name: [centres[each][0] for each in centres if name in edges[each]] for name in row}
        order = sorted(row, key=lambda name: (sum(above[name]) / len(above[name]) if above[name] else width / 2, name))
        for place, name in enumerate(order):
            centres[name] = (space * (place + 0.5), y0 + number * step)
    for name, targets in edges.items():
        for target in sorted(targets):
            (x1, y1), (x2, y2) = centres[name], centres[target]
            parts.append(arrow(x1, y1 + 26, x2, y2))
    for name, (x, y) in centres.items():
        label = name.removeprefix("server/features/")
        size = 7 * len(label) + 14
        parts += [box(x - size / 2, y, size, 26), text(x, y + 18, label, anchor="middle")]
    height = max(y for _, y in centres.values()) + 50
    return picture(
        width, height, "Rooms of Roost; an arrow is an import, without those that a longer way replaces", parts
    )


# --- a request's way


class Step(NamedTuple):
    """One step of a request.

    Attributes:
      lane: Column: 0 for the event loop, 1 for the engine's thread, 2 for the device.
      what: What happens.
      where: Room in which it does.
    """

    lane: int
    what: str
    where: str


STEPS: Final[Sequence[Step]] = (
    Step(0, "1  limits, request id, key, body", "http"),
    Step(0, "2  body to GenerationSpec", "openai, generation"),
    Step(0, "3  messages to token ids", "text"),
    Step(0, "4  choices, each an engine request", "generation"),
    Step(1, "5  waiting queue, then a slot", "scheduling"),
    Step(1, "6  longest cached prefix", "prefix_cache"),
    Step(1, "7  plan: prefill or decode", "scheduling"),
    Step(1, "8  plan to arrays", "worker"),
    Step(2, "9  Griffin over the state pool", "model, kernels"),
    Step(2, "10  logits to a token", "sampling"),
    Step(1, "11  results to outputs", "scheduling"),
    Step(0, "12  tokens to text deltas", "generation, text"),
    Step(0, "13  deltas to server-sent events", "http"),
)
_LANES: Final = ("event loop", "engine thread", "device")


def draw_request() -> str:
    """Returns the picture of a request's way, step by step, over threads and the device."""
    width, lane, row = 1000.0, 320.0, 46.0
    parts = [text(30 + number * lane, 62, name, "small") for number, name in enumerate(_LANES)]
    places = [(30 + step.lane * lane, 76 + number * row) for number, step in enumerate(STEPS)]
    for (x1, y1), (x2, y2) in itertools.pairwise(places):
        start, end = (x1 + 140, y1 + 34), (x2 + 140, y2)
        if x1 != x2:
            start, end = (x1 + (280 if x2 > x1 else 0), y1 + 17), (x2 + 140, y2)
        parts.append(arrow(*start, *end))
    for step, (x, y) in zip(STEPS, places, strict=True):
        parts += [box(x, y, 280, 34), text(x + 10, y + 15, step.what), text(x + 30, y + 29, step.where, "small")]
    back, (x, y) = places[10], places[6]
    parts.append(
        f'<path class="line" stroke-dasharray="4 3" marker-end="url(#head)" '
        f'd="M{back[0] + 280:.0f},{back[1] + 17:.0f} C{x + 330:.0f},{back[1]:.0f} {x + 330:.0f},{y + 17:.0f} '
        f'{x + 280:.0f},{y + 17:.0f}"/>'
    )
    parts.append(text(x + 290, y + 8, "next step", "small"))
    return picture(width, 76 + len(STEPS) * row + 10, "A request's way from HTTP to tokens and back", parts)


# --- the size of a state


def draw_state() -> str:
    """Returns bars, to scale, of the state of 2B and of a transformer's KV cache at several lengths."""
    state = state_bytes(PRESETS["2b"], 2) / 2**20
    per_token = 18 * 2 * 256 * 2  # Gemma 2B: 18 layers, one head of 256 for keys and one for values, bfloat16
    lengths = {"1 K tokens": 2**10, "8 K tokens": 2**13, "100 K tokens": 100_000}
    bars = [("RecurrentGemma 2B, any length", state, "mark")]
    bars += [(f"Gemma 2B, {name}", count * per_token / 2**20, "other") for name, count in lengths.items()]
    scale = 330 / max(size for _, size, _ in bars)
    parts = []
    for number, (name, size, kind) in enumerate(bars):
        y = 58 + number * 46
        parts += [text(20, y, name), box(20, y + 8, max(size * scale, 1), 16, kind)]
        parts.append(text(28 + size * scale, y + 21, f"{size:,.1f} MiB", "small"))
    parts.append(text(20, 250, "Memory of one request in bfloat16, to scale.", "small"))
    parts.append(text(20, 266, "Computed from the models' shapes.", "small"))
    return picture(440, 280, "A state of fixed size beside a KV cache", parts)


# --- speed against length

_CHART: Final = (48.0, 88.0, 300.0, 230.0)
"""Left, top, width and height of the chart's plane, which leave its words readable on a phone."""


def draw_lengths(document: Mapping[str, Any]) -> str:
    """Returns the chart of speed against generated length.

    Args:
      document: What `benchmarks/length_chart.py` has measured.
    """
    options, machine = document["options"], document["machine"]
    curves = {f"{name.partition(', ')[2]}: {curve[-1]:,.0f}": curve for name, curve in document["curves"].items()}
    labels = [f"{length:,}" for length in options["lengths"]]
    styles = [(_kind(name), "") for name in document["curves"]]
    _, top, _, height = _CHART
    parts = [
        text(20, 50, f"Tokens per second of {options['rows']} streams together", "small"),
        *_owners(document["curves"]),
        *chart(_CHART, curves, labels, "tokens of each stream", styles),
        text(20, top + height + 58, f"{machine['cpu']}, {options['threads']} cores", "small"),
        text(20, top + height + 74, f"{document['started'][:10]}, tree {document['tree']}", "small"),
    ]
    return picture(440, top + height + 88, "Speed against generated length", parts)


def _owners(names: Iterable[str]) -> Iterator[str]:
    """Yields the legend: who is measured, each in the colour of its curves."""
    x = 20.0
    for owner in dict.fromkeys(name.partition(", ")[0] for name in names):
        yield f'<path class="curve {_kind(owner)}" d="M{x:g},68 h20"/>'
        yield text(x + 26, 72, owner)
        x += 60 + 8 * len(owner)


def _kind(name: str) -> str:
    return "ours" if name.startswith("Roost") else "theirs"


PICTURES: Final = {
    "roost.svg": draw_overview,
    "rooms.svg": draw_rooms,
    "request.svg": draw_request,
    "state.svg": draw_state,
    "length.svg": lambda: draw_lengths(json.loads((ROOT / "benchmarks" / "length.json").read_text())),
}


def main() -> None:
    """Writes every picture."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw())


if __name__ == "__main__":
    main()
