"""Parts of SVG pictures with one style, whose colours follow the reader's light or dark mode."""

import html
from collections.abc import Iterable
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
