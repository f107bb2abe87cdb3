"""Token ids to text deltas, as they are generated."""

import codecs
from collections import deque
from collections.abc import Sequence

from .stop_strings import ROOT, StopStrings
from .tokenizer import Tokenizer


class Detokenizer:
    """Ids to text deltas: joined deltas equal decoding all at once, cut at the first stop string.

    A delta never ends inside a character's bytes, nor in what may turn out to be a stop string: these are
    held back until more is known. The first stop string is the one that is *complete* first, so that
    generation can end there and then; of several that are complete together, the longest. So a stop string
    that has a shorter one inside, before its end, is never found. Nothing depends on how the ids are cut into
    pushes, and a token costs the same however long the text is.

    Attributes:
      stop_string: the one that was found; from then on all deltas are empty.
      num_sent: Number of tokens, from the first one on, whose text the deltas hold whole. A token that reaches into a
        stop string, or whose last character is not complete yet, is none of them, nor is any after it.

    Args:
      stop: stop strings; `StopStrings` that several choices share are built once.
      include_stop: whether the stop string is part of the text.

    Raises:
      ValueError: a stop string is empty.
    """

    stop_string: str | None

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, include_stop: bool = False) -> None:
        self.stop_string = None
        self._tokenizer = tokenizer
        self._include_stop = include_stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = stop if isinstance(stop, StopStrings) else StopStrings(stop)
        self._node = ROOT
        self.num_sent = 0
        self._num_decoded = 0
        self._num_given = 0
        self._ends: deque[int] = deque()

    def push(self, token_ids: Sequence[int]) -> str:
        """Takes the next ids and gives the text that is safe to send now, often ''."""
        if self.stop_string is not None:
            return ""
        return self._give(self._advance("".join(map(self._decode, token_ids))))

    def finish(self) -> str:
        """Gives what was held back, when no more ids will come; an incomplete character becomes U+FFFD."""
        if self.stop_string is not None:
            return ""
        text = self._advance(self._decoder.decode(b"", final=True))
        rest = self._stop.beginning(self._node, self._stop.depth(self._node))
        self._node = ROOT
        return self._give(text + rest)

    def _decode(self, token_id: int) -> str:
        """The characters that a token completes. Notes where its own last character ends, which may be yet to come."""
        text = self._decoder.decode(self._tokenizer.token_bytes(token_id))
        self._num_decoded += len(text)
        self._ends.append(self._num_decoded + bool(self._decoder.getstate()[0]))
        return text

    def _give(self, text: str) -> str:
        self._num_given += len(text)
        ends = self._ends
        while ends and ends[0] <= self._num_given:
            ends.popleft()
            self.num_sent += 1
        return text

    def _advance(self, new: str) -> str:
        """The held text is the beginning that the node stands for, so it is never copied before it is sent."""
        if not self._stop:
            return new
        before, node = self._node, self._node
        for end, code in enumerate(map(ord, new), start=1):
            node = self._stop.next_node(node, code)
            if (found := self._stop.found_at(node)) is not None:
                self.stop_string = found
                self._node = ROOT
                return self._first(before, new, end if self._include_stop else end - len(found))
        self._node = node
        return self._first(before, new, len(new) - self._stop.depth(node))

    def _first(self, node: int, new: str, end: int) -> str:
        """What was held at the node and the new text, up to `end`; negative values count back into the held text."""
        num_held = self._stop.depth(node)
        return self._stop.beginning(node, min(num_held, num_held + end)) + new[: max(end, 0)]
