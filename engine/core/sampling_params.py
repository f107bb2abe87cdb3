"""Sampling parameters of a request, and their bounds."""

import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from .bad_phrases import PhraseIndex
from .errors import ParameterError
from .output_constraint import StaticMask

MAX_LOGPROBS: Final = 20
"""The largest number of alternatives per token; the device always returns this many when anybody asks."""

MAX_STOP_IDS: Final = 64
"""End and stop ids of one request together; they have a row of this length on the device."""

MAX_BIASES: Final = 300
"""Tokens whose logits one request may move; OpenAI's bound."""

MAX_BAD_TOKENS: Final = 4096
"""Tokens of all bad words of one request together; each is a state of an automaton."""

MAX_LOGIT_CHANGE: Final = 1e30
"""Largest absolute bias or penalty, and the highest temperature: with these, no logit leaves the range of float32."""

MIN_REPETITION_PENALTY: Final = 1e-6
MAX_REPETITION_PENALTY: Final = 1e6
"""Logits are multiplied and divided by it, so both bounds keep them in the range of float32."""

MIN_TYPICAL_P: Final = 1e-6
"""Far above the smallest float32, to which a smaller one might be rounded, or to 0."""

_ID_LIMIT: Final = 2**24
"""Exclusive upper bound of the ids in a request's parameters, which are read before a vocabulary is known. A mask has a
bit for each id up to the largest."""

PENALTY_WINDOW: Final = 4096
"""Generated tokens that penalties look back on; an endless text would else be penalized for all its words."""

_CHANGE_RULE: Final = f"at least {-MAX_LOGIT_CHANGE:g} and at most {MAX_LOGIT_CHANGE:g}"

_SEED_RULE: Final = "an unsigned 64-bit number"

NO_TOKEN: Final = -1
"""Fills up lists of ids on the device."""

NO_CHOICE: Final = -2
"""Sampled where a request's masks leave no token."""

NO_LIMIT: Final = 2**31 - 1
"""The last position there is: generation without a limit."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when to stop. Valid once built.

    Attributes:
      max_tokens: the most tokens to generate; None means until the model stops, 0 only reads the prompt.
      temperature: 0 is greedy, as is what float32 rounds to 0; otherwise logits are divided by it.
      top_k: keep the k likeliest tokens (and ties of the last); 0 keeps all.
      top_p: keep the smallest set of likeliest tokens whose mass, after top_k, reaches this.
      min_p: keep tokens at least this times as likely as the likeliest.
      typical_p: of what those leave, keep the tokens whose surprise is nearest to the expected one (the entropy), as
        many as it takes for their mass to reach this, and those as near as the last.
      frequency_penalty: is taken from a token's logit for every time it has been generated.
      presence_penalty: is taken once from that of every token that has been generated.
      repetition_penalty: logits of tokens in the prompt or the answer are divided by it, or multiplied if negative.
        All three look back on `PENALTY_WINDOW` generated tokens.
      logit_bias: what is added to the logits of these ids, before penalties.
      allowed_token_ids: no other token is chosen; None allows all.
      bad_words: sequences of ids that must not be generated.
      seed: the whole randomness of the request; the same seed gives the same tokens. An unsigned 64-bit number.
      min_tokens: no end or stop id is chosen before this many tokens have been generated.
      end_token_ids: ids that end the answer (`<eos>`, `<end_of_turn>`); they may still be chosen.
      stop_token_ids: further such ids, named by the caller; reported as `stop_reason`.
      logprobs: number of alternatives to report for each generated token; 0 reports only the token's own
        log-probability, None nothing. They are the model's own, before temperature and masks.
      logprob_token_ids: further tokens whose log-probabilities are reported with each generated token.
      prompt_logprobs: the same for the prompt's tokens.

      stop_ids: every id that ends the answer.
      static_mask: what `allowed_token_ids` and bad words of one token leave; None if they leave every token.
      bad_phrases: the bad words of several tokens; None if there are none.

    Raises:
      ParameterError: a value is out of range, or the values leave no token.
    """

    max_tokens: int | None = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    seed: int = 0
    min_tokens: int = 0
    end_token_ids: tuple[int, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    prompt_logprobs: int | None = None
    stop_ids: frozenset[int] = field(init=False, repr=False, compare=False)
    static_mask: StaticMask | None = field(init=False, repr=False, compare=False)
    bad_phrases: PhraseIndex | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, holds, rule in self._rules():
            if not holds:
                raise ParameterError(name, f"be {rule}")
        self._set("stop_ids", frozenset((*self.end_token_ids, *self.stop_token_ids)))
        if len(self.stop_ids) > MAX_STOP_IDS:
            raise ParameterError("stop_token_ids", f"be at most {MAX_STOP_IDS} with the end ids")
        bad_tokens = {word[0] for word in self.bad_words if len(word) == 1}
        phrases = [word for word in self.bad_words if len(word) > 1]
        self._set("static_mask", StaticMask.of(self.allowed_token_ids, bad_tokens))
        self._check_choice()
        self._set("bad_phrases", PhraseIndex(phrases) if phrases else None)

    def with_seed(self, seed: int) -> "SamplingParams":
        """Returns the same parameters with another seed. What was derived from them is shared, not made again.

        Raises:
          ParameterError: the seed is out of range.
        """
        if not 0 <= seed < 2**64:
            raise ParameterError("seed", f"be {_SEED_RULE}")
        other = copy.copy(self)
        object.__setattr__(other, "seed", seed)
        return other

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_choice(self) -> None:
        """
        Raises:
          ParameterError: no token may come, whatever the vocabulary is.
        """
        mask = self.static_mask
        if mask is None:
            return
        if mask.is_empty():
            raise ParameterError("bad_words", "leave at least one of allowed_token_ids")
        if self.min_tokens and mask.is_empty(self.stop_ids):
            raise ParameterError("min_tokens", "be 0 where all of allowed_token_ids end the answer or are bad_words")

    def _rules(self) -> Iterator[tuple[str, bool, str]]:
        """Yields each field with whether its rule holds, and the rule in words."""
        ids: tuple[tuple[str, Collection[int]], ...] = (
            ("logit_bias", [token_id for token_id, _ in self.logit_bias]),
            ("allowed_token_ids", self.allowed_token_ids or ()),
            ("bad_words", [*chain.from_iterable(self.bad_words)]),
            ("end_token_ids", self.end_token_ids),
            ("stop_token_ids", self.stop_token_ids),
            ("logprob_token_ids", self.logprob_token_ids),
        )
        for name, each in ids:
            is_inside = not each or (min(each) >= 0 and max(each) < _ID_LIMIT)
            yield name, is_inside, f"of token ids, from 0 to {_ID_LIMIT - 1}"
        yield from (
            ("max_tokens", self.max_tokens is None or self.max_tokens >= 0, "at least 0"),
            (
                "temperature",
                0.0 <= self.temperature <= MAX_LOGIT_CHANGE,
                f"0 to {MAX_LOGIT_CHANGE:g}",
            ),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "between 0 and 1"),
            ("typical_p", MIN_TYPICAL_P <= self.typical_p <= 1.0, f"at least {MIN_TYPICAL_P:g} and at most 1"),
            ("frequency_penalty", abs(self.frequency_penalty) <= MAX_LOGIT_CHANGE, _CHANGE_RULE),
            ("presence_penalty", abs(self.presence_penalty) <= MAX_LOGIT_CHANGE, _CHANGE_RULE),
            (
                "repetition_penalty",
                MIN_REPETITION_PENALTY <= self.repetition_penalty <= MAX_REPETITION_PENALTY,
                f"at least {MIN_REPETITION_PENALTY:g} and at most {MAX_REPETITION_PENALTY:g}",
            ),
            ("logit_bias", len(self.logit_bias) <= MAX_BIASES, f"for at most {MAX_BIASES} tokens"),
            ("logit_bias", all(abs(bias) <= MAX_LOGIT_CHANGE for _, bias in self.logit_bias), _CHANGE_RULE),
            ("allowed_token_ids", self.allowed_token_ids != (), "at least one id"),
            ("bad_words", all(self.bad_words), "of at least one token each"),
            ("bad_words", sum(map(len, self.bad_words)) <= MAX_BAD_TOKENS, f"at most {MAX_BAD_TOKENS} tokens in total"),
            ("seed", 0 <= self.seed < 2**64, _SEED_RULE),
            ("min_tokens", self.min_tokens >= 0, "at least 0"),
            ("stop_token_ids", len(self.stop_token_ids) <= MAX_STOP_IDS, f"at most {MAX_STOP_IDS} ids"),
            ("end_token_ids", len(self.end_token_ids) <= MAX_STOP_IDS, f"at most {MAX_STOP_IDS} ids"),
            ("logprobs", self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS, f"0 to {MAX_LOGPROBS}"),
            ("logprob_token_ids", len(self.logprob_token_ids) <= MAX_LOGPROBS, f"at most {MAX_LOGPROBS} ids"),
            ("logprob_token_ids", self.logprobs is not None or not self.logprob_token_ids, "used with logprobs"),
            (
                "prompt_logprobs",
                self.prompt_logprobs is None or 0 <= self.prompt_logprobs <= MAX_LOGPROBS,
                f"0 to {MAX_LOGPROBS}",
            ),
        )
