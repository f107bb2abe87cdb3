"""Token ids to text deltas, as they are generated."""

import codecs
from collections.abc import Sequence

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

    Args:
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
        self._matchers = [_Matcher(string) for string in stop]
        self._held = ""

    def push(self, token_ids: Sequence[int]) -> str:
        """Takes the next ids and gives the text that is safe to send now, often ''."""
        if self.stop_string is not None:
            return ""
        data = b"".join(map(self._tokenizer.token_bytes, token_ids))
        return self._advance(self._decoder.decode(data))

    def finish(self) -> str:
        """Gives what was held back, when no more ids will come; an incomplete character becomes U+FFFD."""
        if self.stop_string is not None:
            return ""
        text = self._advance(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text + rest

    def _advance(self, new: str) -> str:
        if not self._matchers:
            return new
        text = self._held + new
        for end, char in enumerate(new, start=len(self._held) + 1):
            if complete := [matcher.string for matcher in self._matchers if matcher.feed(char)]:
                self.stop_string = max(complete, key=len)
                self._held = ""
                return text[: end if self._include_stop else end - len(self.stop_string)]
        num_safe = len(text) - max(matcher.matched for matcher in self._matchers)
        self._held = text[num_safe:]
        return text[:num_safe]


class _Matcher:
    """Finds a string in a text that comes one character at a time (Knuth, Morris, Pratt).

    Attributes:
      matched: length of the longest beginning of `string` with which the text so far ends.
    """

    def __init__(self, string: str) -> None:
        if not string:
            raise ValueError("a stop string must not be empty")
        self.string = string
        self.matched = 0
        self._borders = _borders(string)

    def feed(self, char: str) -> bool:
        """Takes the next character; True if it completes the string, after which nothing may be fed."""
        while self.matched and self.string[self.matched] != char:
            self.matched = self._borders[self.matched - 1]
        self.matched += self.string[self.matched] == char
        return self.matched == len(self.string)


def _borders(string: str) -> list[int]:
    """For each beginning of `string`: the length of the longest shorter beginning with which it ends."""
    borders = [0]
    for char in string[1:]:
        length = borders[-1]
        while length and string[length] != char:
            length = borders[length - 1]
        borders.append(length + (string[length] == char))
    return borders
