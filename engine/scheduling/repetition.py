"""Last tokens of a request, and whether they repeat earlier ones."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from ..types.speculation import HISTORY

_ROOM: Final = 2 * HISTORY
"""Number of tokens at which all but the last are dropped."""


class Repetition:
    """Last tokens of a request. New text has many pairs of tokens twice, but few longer sequences.

    Args:
      prompt: Token ids of the prompt, or others before the generated ones.
      length: Number of last tokens that must have occurred before, in the same order.
    """

    def __init__(self, prompt: Sequence[int], length: int) -> None:
        self._tokens = np.empty(_ROOM, np.int32)
        self._size = 0
        self._length = length
        self.add(prompt)

    def add(self, token_ids: Sequence[int]) -> None:
        """Adds tokens."""
        new = token_ids[-HISTORY:]
        if self._size + len(new) > _ROOM:
            kept = _ROOM - HISTORY
            self._tokens[:kept] = self._tokens[self._size - kept : self._size]
            self._size = kept
        self._tokens[self._size : self._size + len(new)] = new
        self._size += len(new)

    @property
    def is_repeating(self) -> bool:
        """Whether the last tokens occurred before."""
        length, tokens = self._length, self._tokens[: self._size]
        if len(tokens) <= length:
            return False
        ends = np.flatnonzero(tokens[length - 1 : -1] == tokens[-1]) + length - 1
        for back in range(1, length):
            ends = ends[tokens[ends - back] == tokens[-1 - back]]
        return ends.size > 0
