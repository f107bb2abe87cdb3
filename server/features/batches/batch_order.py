"""Order in which the lines of a batch run."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from .batch_lines import LineFacts

type Column = np.ndarray[Any, np.dtype[Any]]
"""Array with one value for each line of an input."""


def run_order(groups: Column, num_tokens: Column) -> Column:
    """Returns the indices of all lines in the order in which they should run.

    Lines of a group are neighbours, so that the prefix cache serves their common prefix. Groups keep the order of the
    file. Within a group, long and short lines alternate, so that slots are freed at different times.

    Args:
      groups: Hash of the beginning of each line's prompt; see `group_hash`.
      num_tokens: Estimate of each line's prompt tokens and generated tokens.
    """
    _, first, members = np.unique(groups, return_index=True, return_inverse=True)
    starts = first[members]
    by_length = np.lexsort((-num_tokens.astype(np.int64), starts))
    _, begin, sizes = np.unique(starts[by_length], return_index=True, return_counts=True)
    begin, sizes = np.repeat(begin, sizes), np.repeat(sizes, sizes)
    turn = np.arange(len(by_length)) - begin
    return by_length[begin + np.where(turn % 2 == 0, turn // 2, sizes - 1 - turn // 2)]


def group_hash(facts: LineFacts) -> int:
    """Returns the hash of the beginning of a line's prompt."""
    return int.from_bytes(blake2b(facts.prefix, digest_size=8).digest())


class SegmentOrder:
    """Orders the lines of an upload by segments, so that memory does not grow with the file.

    Args:
      size: Number of lines of a segment.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._groups, self._num_tokens = array("Q"), array("Q")

    @property
    def is_full(self) -> bool:
        """Whether a segment is complete. `take` must be called before the next line is added."""
        return len(self._groups) == self._size

    def add(self, facts: LineFacts) -> None:
        """Adds the next line."""
        self._groups.append(group_hash(facts))
        self._num_tokens.append(facts.num_tokens)

    def take(self) -> Sequence[int]:
        """Returns the offsets of the segment's lines in the order in which they run, and begins the next segment."""
        order = run_order(np.array(self._groups, np.uint64), np.array(self._num_tokens, np.uint64))
        self._groups, self._num_tokens = array("Q"), array("Q")
        return [int(offset) for offset in order]
