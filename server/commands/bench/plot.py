"""Draws curves as SVG with matplotlib, which is an extra."""

import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ...terminal.failure import CommandError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE: Final = "#2a78d6"
_INK: Final = "#52514e"
_GRID: Final = "#e1e0d9"
_SEPARATED: Final = "{x:,.10g}"
_MAX_POINTS: Final = 1000
_STYLE: Any = {
    "svg.hashsalt": "roost",  # the same numbers give the same file
    "font.size": 10,
    "text.color": "#0b0b0b",
    "axes.edgecolor": "#c3c2b7",
    "axes.labelcolor": _INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "lines.linewidth": 2,
    "lines.markersize": 5,
}


def require_matplotlib() -> None:
    """Checks that matplotlib is installed.

    Raises:
      CommandError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError("--svg needs matplotlib; in a clone of Roost, pip install '.[bench]'")


def draw_latencies(title: str, panels: Mapping[str, Sequence[float]]) -> bytes:
    """Draws the cumulative distribution of latencies.

    Args:
      title: Title of the figure.
      panels: Milliseconds by the title of a panel, at least one value each.
    """
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_figure(title, len(panels))
        for axis, (name, values) in zip(axes, panels.items(), strict=True):
            _draw_shares(axis, sorted(values))
            axis.set_title(f"{name}, ms")
        axes[0].set_ylabel("share that took at most this long")
        return _to_svg(figure)


def _new_figure(title: str, panels: int) -> "tuple[Figure, Sequence[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * panels + 0.6, 3.3), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    return figure, list(axes)


def _draw_shares(axis: "Axes", ordered: Sequence[float]) -> None:
    count = len(ordered)
    places = sorted({place * (count - 1) // _MAX_POINTS for place in range(_MAX_POINTS + 1)})
    shares = [100 * (place + 1) / count for place in places]
    axis.step([ordered[0], *(ordered[place] for place in places)], [0, *shares], where="post", color=_BLUE)
    axis.set_ylim(0, 102)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_formatter(_SEPARATED)
    axis.yaxis.set_major_formatter("{x:.0f} %")


def _to_svg(figure: "Figure") -> bytes:
    file = io.BytesIO()
    metadata: Any = {"Date": None, "Creator": "roost bench"}
    figure.savefig(file, format="svg", metadata=metadata)
    return file.getvalue()
