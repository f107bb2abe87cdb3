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
_ORANGE: Final = "#c2571a"
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


def draw_lengths(
    title: str, lengths: Sequence[int], rates: Sequence[float], memory: Mapping[str, Sequence[float]]
) -> bytes:
    """Draws speed and memory over the length of a sequence.

    Args:
      title: Title of the figure.
      lengths: End of each stretch, in generated tokens.
      rates: Tokens per second over each stretch.
      memory: MiB at the end of each stretch, by the name of a curve.
    """
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figure, (speed, space) = _new_figure(title, 2)
        _draw_curve(speed, lengths, rates, _BLUE)
        speed.set_title("tokens per second")
        for (name, values), color in zip(memory.items(), (_BLUE, _ORANGE), strict=False):
            _draw_curve(space, lengths, values, color, name)
        space.set_title("memory, MiB")
        space.legend(frameon=False, loc="lower right")
        return _to_svg(figure)


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


def _draw_curve(axis: "Axes", lengths: Sequence[int], values: Sequence[float], color: str, name: str = "") -> None:
    axis.plot(lengths, values, "o-", color=color, label=name)
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [_short(length) for length in lengths], minor=False)
    axis.set_xticks([], minor=True)
    axis.set_xlabel("tokens generated")
    axis.yaxis.set_major_formatter(_SEPARATED)
    axis.set_ylim(0, max(axis.get_ylim()[1], 1.25 * max(values)))


def _draw_shares(axis: "Axes", ordered: Sequence[float]) -> None:
    count = len(ordered)
    places = sorted({place * (count - 1) // _MAX_POINTS for place in range(_MAX_POINTS + 1)})
    shares = [100 * (place + 1) / count for place in places]
    axis.step([ordered[0], *(ordered[place] for place in places)], [0, *shares], where="post", color=_BLUE)
    axis.set_ylim(0, 102)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_formatter(_SEPARATED)
    axis.yaxis.set_major_formatter("{x:.0f} %")


def _short(length: int) -> str:
    """Returns a length in units of 1024, if it is a multiple: 16384 is 16k."""
    return f"{length // 1024}k" if length >= 1024 and not length % 1024 else str(length)


def _to_svg(figure: "Figure") -> bytes:
    file = io.BytesIO()
    metadata: Any = {"Date": None, "Creator": "roost bench"}
    figure.savefig(file, format="svg", metadata=metadata)
    return file.getvalue()
