"""Parts of SVG pictures with one style, whose colours follow the reader's light or dark mode."""

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

_STYLE: Final = """\
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-size: 16px; font-weight: 600; }
.small { font-size: 11px; fill: #59636e; }
.box { fill: #f6f8fa; stroke: #8c959f; }
.mark { fill: #0969da; }
.other { fill: #afb8c1; }
.line { stroke: #8c959f; fill: none; }
.head { fill: #8c959f; }
.inside { fill: #ffffff; font-weight: 600; }
.step { fill: #ddf4ff; stroke: #54aeff; }
.curve { fill: none; stroke-width: 2.5; }
.ours { stroke: #0969da; }
.theirs { stroke: #8c959f; }
.grid { stroke: #d1d9e0; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .small { fill: #9198a1; }
  .box { fill: #21262d; stroke: #6e7681; }
  .mark { fill: #1f6feb; }
  .other { fill: #484f58; }
  .line { stroke: #6e7681; }
  .head { fill: #6e7681; }
  .inside { fill: #ffffff; }
  .step { fill: #121d2f; stroke: #1f6feb; }
  .ours { stroke: #4493f8; }
  .theirs { stroke: #9198a1; }
  .grid { stroke: #3d444d; }
}
"""


def picture(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    """Returns an SVG with a title. Pages show it at its own size, or smaller where they are narrower."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" role="img">',
            f"<title>{html.escape(title)}</title>",
            f"<style>\n{_STYLE}</style>",
            '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="3" orient="auto">'
            '<path class="head" d="M0,0 L7,3 L0,6 z"/></marker></defs>',
            text(20, 28, title, "title"),
            *parts,
            "</svg>",
            "",
        ]
    )


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{html.escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str = "box") -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" class="{kind}"/>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path class="line" marker-end="url(#head)" d="M{x1:.0f},{y1:.0f} L{x2:.0f},{y2:.0f}"/>'


def chart(
    plane: tuple[float, float, float, float],
    curves: Mapping[str, Sequence[float]],
    labels: Sequence[str],
    below: str,
    styles: Sequence[tuple[str, str]],
    *,
    is_log: bool = False,
    most: float = math.inf,
) -> Iterator[str]:
    """Yields curves in one pair of axes, each with its name at the end.

    Args:
      plane: Left, top, width and height of the plane of the curves.
      curves: Values of each curve at places of equal distance.
      labels: Labels of the places.
      below: Name of the horizontal axis.
      styles: Class and dashes of each curve.
      is_log: Whether values are drawn by their logarithm.
      most: Value from which curves are cut off.
    """
    left, top, width, height = plane
    values = [value for curve in curves.values() for value in curve if value < most]
    ticks = _log_ticks(values) if is_log else _ticks(max(values))

    def y_of(value: float) -> float:
        value = min(value, ticks[-1])
        if is_log:
            low, high = math.log(ticks[0]), math.log(ticks[-1])
            return top + height * (1 - (math.log(max(value, ticks[0])) - low) / (high - low))
        return top + height * (1 - value / ticks[-1])

    xs = [left + width * place / max(len(labels) - 1, 1) for place in range(len(labels))]
    for tick in ticks:
        yield f'<path class="grid" d="M{left:g},{y_of(tick):.1f} h{width:g}"/>'
        yield text(left - 8, y_of(tick) + 4, f"{tick:,g}", "small", "end")
    for x, label in zip(xs, labels, strict=True):
        yield text(x, top + height + 16, label, "small", "middle")
    yield text(left + width / 2, top + height + 34, below, "small", "middle")
    ends = apart({name: y_of(curve[-1]) for name, curve in curves.items()}, 15.0)
    for (name, curve), (kind, dashes) in zip(curves.items(), styles, strict=False):
        points = " L".join(f"{x:.1f},{y_of(value):.1f}" for x, value in zip(xs, curve, strict=True))
        yield f'<path class="curve {kind}" stroke-dasharray="{dashes}" d="M{points}"/>'
        yield text(left + width + 8, ends[name] + 4, name, "small")


def _ticks(most: float) -> list[float]:
    step = 10 ** math.floor(math.log10(max(most, 1e-6)))
    step = next(step * factor for factor in (0.2, 0.5, 1, 2) if most <= 6 * step * factor)
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]


def _log_ticks(values: Sequence[float]) -> list[float]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0**power for power in range(low, max(high, low + 1) + 1)]


def apart(places: Mapping[str, float], gap: float) -> Mapping[str, float]:
    """Returns the places in the same order, moved down where two would be closer than the gap."""
    moved: dict[str, float] = {}
    for name in sorted(places, key=lambda each: places[each]):
        moved[name] = max([places[name], *(other + gap for other in moved.values())])
    return moved
