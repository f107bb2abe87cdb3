"""Compiles one grammar, then computes token masks of outputs until the server closes the pipe."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import gbnf_to_lark

from .protocol import (
    TOKEN,
    Allowance,
    Frame,
    FrameReader,
    GrammarFailure,
    GrammarLimits,
    Kind,
    Notation,
    Vocabulary,
    cpu_limit,
    limit_memory,
    resident,
)

_MAX_MESSAGE: Final = 16 * 1024
"""Maximum characters of an error message, since the library quotes the grammar in it."""

_LIMITS: Final = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
"""The library's limits, except for lexer states: a state takes up to 2 kB, and every follower has separate states."""


_MAX_FORCED_BYTES: Final = 256
"""Maximum bytes of a forced text that the model's tokenizer encodes.

The library tokenizes the whole text again for each token and uses the first id only, so a long constant would take
seconds.
"""


class WorkerTokenizer:
    """Tokenizer that llguidance calls; the library reads its attributes by these names.

    Args:
      vocabulary: Tokens of the model.

    Attributes:
      tokenize: Requests the token ids of a text, or none, from the server; None before the connection exists.
      library: Tokenizer of the library.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokenize: Callable[[bytes], list[int]] | None = None
        self.tokens = vocabulary.tokens
        self.special_token_ids = vocabulary.special_token_ids
        self.eos_token_id = vocabulary.end_token_ids[0]
        self.bos_token_id = vocabulary.bos_token_id
        ends = list(vocabulary.end_token_ids)
        self.library = LLTokenizer(TokenizerWrapper(self), n_vocab=len(self.tokens), eos_token=ends)

    def __call__(self, text: bytes) -> list[int]:
        """Returns the token ids of a forced text."""
        if self.tokenize is None:
            return []
        cut = min(len(text), _MAX_FORCED_BYTES)
        while cut < len(text) and text[cut] & 0xC0 == 0x80:  # never inside of a character
            cut -= 1
        head, rest = (self.library.greedy_tokenize(part.decode()) for part in (text[:cut], text[cut:]))
        return (self.tokenize(text[:cut]) or head) + rest


class Server:
    """Connection to the server: two pipes."""

    def __init__(self, commands: int, replies: int) -> None:
        self._commands, self._replies = commands, replies
        self._arriving = self._receive()
        self._kept: deque[Frame] = deque()

    def read(self) -> Frame:
        """Waits for and returns the next message.

        Raises:
          StopIteration: The server has closed the pipe.
        """
        return self._kept.popleft() if self._kept else next(self._arriving)

    def write(self, frame: Frame) -> None:
        """Sends a message."""
        data = memoryview(frame.to_bytes())
        while data:
            data = data[os.write(self._replies, data) :]

    def tokenize(self, text: bytes) -> list[int]:
        """Requests the token ids of a text from the server. Commands that arrive first are kept for `read`."""
        self.write(Frame(Kind.TOKENIZE, payload=text))
        while (frame := next(self._arriving)).kind is not Kind.TOKENS:
            self._kept.append(frame)
        return [token_id for (token_id,) in TOKEN.iter_unpack(frame.payload)]

    def _receive(self) -> Iterator[Frame]:
        reader = FrameReader()
        while data := os.read(self._commands, 65536):
            yield from reader.feed(data)


def run(tokenizer: WorkerTokenizer, server: Server, limits: GrammarLimits) -> None:
    """Serves one grammar until the server closes its pipe."""
    before = resident()
    limit_memory(limits)
    tokenizer.tokenize = server.tokenize
    command = server.read().payload
    notation, source = Notation(command[0]), command[1:].decode()
    try:
        with cpu_limit(limits.compile_cpu_s):
            matcher = compile_grammar(tokenizer.library, notation, source)
    except GrammarFailure as error:
        server.write(Frame(Kind.REFUSED, payload=str(error)[:_MAX_MESSAGE].encode()))
        return
    server.write(Frame(Kind.COMPILED, payload=max(resident() - before, 0).to_bytes(8)))
    follow(matcher, server, limits)


def compile_grammar(tokenizer: LLTokenizer, notation: Notation, source: str) -> LLMatcher:
    """Returns a matcher at the start of the grammar.

    Args:
      tokenizer: Tokenizer of the library.
      notation: Notation of the source.
      source: Grammar.

    Raises:
      GrammarFailure: The grammar is wrong, or uses an unsupported feature.
    """
    matcher = LLMatcher(tokenizer, _TRANSLATIONS[notation](source), log_level=0, limits=_LIMITS)
    _check(matcher)
    _try_first_steps(matcher, tokenizer)
    return matcher


def follow(matcher: LLMatcher, server: Server, limits: GrammarLimits) -> None:
    """Computes masks of followers until the server closes the pipe.

    Args:
      matcher: Matcher at the start of the grammar, which is copied for each follower.
      server: Connection to the server.
      limits: Resource limits of each follower.
    """
    followers: dict[int, tuple[LLMatcher, Allowance]] = {}
    while True:
        frame = server.read()
        if frame.kind is Kind.DROP:
            followers.pop(frame.follower, None)
            continue
        try:
            if frame.follower not in followers:
                followers[frame.follower] = (matcher.deep_copy(), Allowance(limits))  # the copy is cheap
            follower, allowance = followers[frame.follower]
            token_ids = [token_id for (token_id,) in TOKEN.iter_unpack(frame.payload)]
            with allowance.spend(len(token_ids)):
                mask = _next_mask(follower, token_ids)
                forced, mask = _look_ahead(follower, mask, limits.max_forced)
            payload = b"".join(map(TOKEN.pack, (len(forced), *forced))) + mask
            server.write(Frame(Kind.MASK, frame.follower, payload))
        except GrammarFailure as error:
            server.write(Frame(Kind.FAILED, frame.follower, str(error)[:_MAX_MESSAGE].encode()))


def _next_mask(matcher: LLMatcher, token_ids: Sequence[int]) -> bytes:
    """Advances a matcher and returns its token mask.

    Args:
      matcher: Matcher of one output.
      token_ids: Next tokens of the output; none for the first mask.
    """
    for token_id in token_ids:
        matcher.consume_token(token_id)
        _check(matcher)
    mask = matcher.compute_bitmask()
    _check(matcher)
    return mask


def _look_ahead(matcher: LLMatcher, mask: bytes, most: int) -> tuple[list[int], bytes]:
    """Returns tokens that are each the only one allowed after the previous tokens, and the mask after them.

    Args:
      matcher: Matcher of one output.
      mask: Its token mask.
      most: Maximum number of tokens.
    """
    forced: list[int] = []
    ahead = matcher
    while len(forced) < most and not ahead.is_stopped() and (token_id := _only(mask)) is not None:
        ahead = ahead.deep_copy() if ahead is matcher else ahead
        ahead.consume_token(token_id)
        following = ahead.compute_bitmask()
        if ahead.is_error():  # which fails the output once it gets there
            break
        forced.append(token_id)
        mask = following
    return forced, mask


def _only(mask: bytes) -> int | None:
    """Returns the only token of a mask; None if it has none or several."""
    bits = int.from_bytes(mask, "little")
    return bits.bit_length() - 1 if bits and not bits & (bits - 1) else None


def _try_first_steps(matcher: LLMatcher, tokenizer: LLTokenizer) -> None:
    """Computes the first masks, where some grammars turn out too complex; the work is shared by all followers."""
    allowed = int.from_bytes(matcher.compute_bitmask(), "little") & ~sum(1 << end for end in tokenizer.eos_tokens)
    _check(matcher)
    if allowed:
        trial = matcher.deep_copy()
        trial.consume_token(allowed.bit_length() - 1)
        trial.compute_bitmask()
        _check(trial)


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise GrammarFailure(matcher.get_error())


def _from_gbnf(source: str) -> str:
    try:
        return gbnf_to_lark(source)
    except RecursionError:
        raise GrammarFailure("the grammar is nested too deeply") from None
    except Exception as error:  # the library has no common error class
        raise GrammarFailure(f"invalid GBNF: {error}") from None


_TRANSLATIONS: Final[Mapping[Notation, Callable[[str], str]]] = {
    Notation.LARK: str,
    Notation.GBNF: _from_gbnf,
    Notation.REGEX: LLMatcher.grammar_from_regex,
}
"""Functions that translate a source to the library's grammars."""
