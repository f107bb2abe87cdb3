"""The picture that shows what Roost is: clients, slots of one size, and what is done with copies of them."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from roost.engine.model.config import PRESETS
from roost.engine.model.state import state_bytes

sys.path.append(str(Path(__file__).parent))  # for an interpreter with -P
from svg import arrow, box, picture, text

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
