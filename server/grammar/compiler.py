"""Compiles grammars off the event loop, each once."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from ..tokenizer import Tokenizer
from .constraint import Grammar
from .spec import GrammarError, GrammarSpec, one_line
from .vocabulary import llguidance_tokenizer

MAX_CACHED: Final = 64
TIMEOUT_S: Final = 10.0

_LIMITS: Final = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
"""The library's own, but for memory: a state takes up to 2 kB, and every request has its own."""


class GrammarCompiler:
    """
    Args:
      end_token_ids: all that end an answer.
      max_cached: compiled grammars to remember; the one that was not asked for longest makes room.
      timeout_s: how long a grammar may take, waiting for others included.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        end_token_ids: Sequence[int],
        max_cached: int = MAX_CACHED,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._tokenizer = tokenizer
        self._end_token_ids = end_token_ids
        self._max_cached = max_cached
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="grammar")
        self._vocabulary: Future[LLTokenizer] | None = None
        self._compiled: OrderedDict[GrammarSpec, asyncio.Future[Grammar]] = OrderedDict()

    async def compile(self, spec: GrammarSpec) -> Grammar:
        """
        Raises:
          GrammarError: the grammar is wrong, has a feature that is not supported, or takes too long; or there is no
            tokenizer that could follow it.
        """
        compiling = self._compiled.get(spec) or self._begin(spec)
        self._compiled.move_to_end(spec)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(compiling)
        except TimeoutError:
            raise GrammarError(f"it takes longer than {self._timeout_s:g} s to compile") from None

    def _begin(self, spec: GrammarSpec) -> asyncio.Future[Grammar]:
        """Others that want the same meanwhile wait for the same."""
        if self._vocabulary is None:  # takes half a second with a large one, and many servers never need it
            self._vocabulary = self._threads.submit(llguidance_tokenizer, self._tokenizer, self._end_token_ids)
        compiling = asyncio.wrap_future(self._threads.submit(_compile, self._vocabulary, spec))
        compiling.add_done_callback(lambda done: done.cancelled() or done.exception())  # maybe nobody waits any more
        self._compiled[spec] = compiling
        if len(self._compiled) > self._max_cached:
            self._compiled.popitem(last=False)
        return compiling


def _compile(vocabulary: Future[LLTokenizer], spec: GrammarSpec) -> Grammar:
    tokenizer = vocabulary.result()
    matcher = LLMatcher(tokenizer, spec.for_library(), log_level=0, limits=_LIMITS)
    _check(matcher)
    _try_first_steps(matcher, tokenizer)
    return Grammar(matcher)


def _try_first_steps(matcher: LLMatcher, tokenizer: LLTokenizer) -> None:
    """Some grammars show only in use that they are too complex; and the work of the first mask is done for all."""
    mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    _check(matcher)
    allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist()
    first = next((token_id for token_id in allowed if token_id not in tokenizer.eos_tokens), None)
    if first is not None:
        trial = matcher.deep_copy()
        trial.consume_token(first)
        trial.compute_bitmask()
        _check(trial)


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise GrammarError(one_line(matcher.get_error()))
