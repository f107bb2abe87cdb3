"""Incremental detokenization of generated tokens, up to the first stop string."""

import codecs
from collections import deque
from collections.abc import Sequence

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
      stop: Stop strings, none of which is empty.
      include_stop: Whether the stop string is part of the text.

    Attributes:
      stop_string: Stop string that was found, after which all deltas are empty; None before that.
      num_sent: Number of leading tokens whose whole text has been returned. A token that reaches into a stop string, or
        whose last character is incomplete, doesn't count, and neither does any token after it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, include_stop: bool = False) -> None:
        self.stop_string: str | None = None
        self._tokenizer = tokenizer
        self._include_stop = include_stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = stop
        self._held = ""
        self.num_sent = 0
        self._num_decoded = 0
        self._num_returned = 0
        self._ends: deque[int] = deque()

    def push(self, token_ids: Sequence[int]) -> str:
        """Adds token ids and returns the text that can be sent now, which is often empty."""
        if self.stop_string is not None:
            return ""
        if not self._stop and not self._ends and len(token_ids) == 1:
            piece = self._tokenizer.token_bytes(token_ids[0])
            if piece.isascii():  # the text is complete, and is sent immediately
                self._num_decoded += len(piece)
                self._num_returned += len(piece)
                self.num_sent += 1
                return piece.decode()
        return self._count_sent(self._advance("".join(map(self._decode, token_ids))))

    def finish(self, token_ids: Sequence[int] = ()) -> str:
        """Adds the last ids, and returns the remaining text. An incomplete character becomes U+FFFD."""
        text = self.push(token_ids) if token_ids else ""
        if self.stop_string is not None:
            return text
        rest = self._advance(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text + self._count_sent(rest)

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
        """Matches new text, and returns the text that can be sent. Holds back what may begin a stop string."""
        num_held, text, self._held = len(self._held), self._held + new, ""
        candidates = [stop for stop in self._stop if stop[0] in text]
        found = []
        for stop in candidates:
            start = text.find(stop, max(num_held - len(stop) + 1, 0))  # the held text has no whole stop string
            if start >= 0:
                found.append((start + len(stop), start, stop))
        if found:
            end, start, self.stop_string = min(found)
            return text[: end if self._include_stop else start]
        start = min([start_of_prefix(text, stop) for stop in candidates], default=len(text))
        self._held = text[start:]
        return text[:start]


def start_of_prefix(text: str, stop: str) -> int:
    """Returns the start of the longest end of the text that is a proper prefix of a stop string; else the length."""
    start = text.find(stop[0], max(len(text) - len(stop) + 1, 0))
    while start >= 0 and not stop.startswith(text[start:]):
        start = text.find(stop[0], start + 1)
    return len(text) if start < 0 else start
