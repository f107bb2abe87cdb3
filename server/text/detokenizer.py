"""Incremental detokenization of generated tokens."""

import codecs
from collections import deque
from collections.abc import Sequence

from .stop_strings import ROOT, StopStrings
from .tokenizer import Tokenizer


class Detokenizer:
    """Converts token ids to text deltas. Joined, these equal the whole text up to the first stop string.

    A delta never ends inside of a character's bytes or of a possible stop string: these are held back until more tokens
    arrive. The first stop string is the one that is *complete* first, so that generation can end there; of several that
    complete together, the longest. A stop string that contains a shorter one before its end is therefore never found.
    The result does not depend on how ids are grouped into pushes. The cost of a token does not depend on the length of
    the text.

    Args:
      tokenizer: Tokenizer of the model.
      stop: Stop strings; choices of a request can share one `StopStrings`.
      include_stop: Whether the stop string is part of the text.

    Attributes:
      stop_string: Stop string that was found, after which all deltas are empty; None before that.
      num_sent: Number of leading tokens whose whole text has been returned. A token that reaches into a stop string, or
        whose last character is incomplete, doesn't count, and neither does any token after it.

    Raises:
      ValueError: A stop string is empty.
    """

    stop_string: str | None

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, include_stop: bool = False) -> None:
        self.stop_string = None
        self._tokenizer = tokenizer
        self._include_stop = include_stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = None if not stop else stop if isinstance(stop, StopStrings) else StopStrings(stop)
        self._node = ROOT
        self.num_sent = 0
        self._num_decoded = 0
        self._num_returned = 0
        self._ends: deque[int] = deque()

    def push(self, token_ids: Sequence[int]) -> str:
        """Adds token ids and returns the text that can be sent now, which is often empty."""
        if self.stop_string is not None:
            return ""
        if self._stop is None and not self._ends and len(token_ids) == 1:
            piece = self._tokenizer.token_bytes(token_ids[0])
            if piece.isascii():  # the text is complete, and is sent immediately
                self._num_decoded += len(piece)
                self._num_returned += len(piece)
                self.num_sent += 1
                return piece.decode()
        return self._count_sent(self._advance("".join(map(self._decode, token_ids))))

    def finish(self) -> str:
        """Returns the text that was held back, after the last id. An incomplete character becomes U+FFFD."""
        if self.stop_string is not None:
            return ""
        text = self._decoder.decode(b"", final=True)
        if not text and self._stop is None:  # the usual case: nothing was held back
            return ""
        text = self._advance(text)
        if self._stop is not None:
            text += self._stop.prefix(self._node, self._stop.depth(self._node))
            self._node = ROOT
        return self._count_sent(text)

    def _decode(self, token_id: int) -> str:
        """Returns the characters that a token completes, and records where its own last character ends."""
        text = self._decoder.decode(self._tokenizer.token_bytes(token_id))
        self._num_decoded += len(text)
        self._ends.append(self._num_decoded + bool(self._decoder.getstate()[0]))
        return text

    def _count_sent(self, text: str) -> str:
        self._num_returned += len(text)
        ends = self._ends
        while ends and ends[0] <= self._num_returned:
            ends.popleft()
            self.num_sent += 1
        return text

    def _advance(self, new: str) -> str:
        """Matches new text and returns the text that can be sent. The node represents the held text, which is not
        copied.
        """
        stop = self._stop
        if stop is None:
            return new
        before, node = self._node, self._node
        for end, code in enumerate(map(ord, new), start=1):
            node = stop.next_node(node, code)
            if (found := stop.found_at(node)) is not None:
                self.stop_string = found
                self._node = ROOT
                return _first(stop, before, new, end if self._include_stop else end - len(found))
        self._node = node
        return _first(stop, before, new, len(new) - stop.depth(node))


def _first(stop: StopStrings, node: int, new: str, end: int) -> str:
    """Returns held text and new text up to `end`, which counts from the new text's start and may be negative."""
    num_held = stop.depth(node)
    return stop.prefix(node, min(num_held, num_held + end)) + new[: max(end, 0)]
