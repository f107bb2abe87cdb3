"""Sampling parameters of a request, declared as a table of sampling fields, and the device arrays that hold them.

The table is `SamplingParams`. Every number in it is declared as a row, a `SamplingField`, which holds all facts about
the number except its arithmetic: bounds, defaults and the device array. Request schemas, validation, checkpoint
defaults and device arrays are derived from it. To add a number, declare its row, and its array in `SamplingState`.
"""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any, Final

from .errors import ParameterError
from .output_constraint import PhraseIndex, StaticMask, phrase_index

MAX_LOGPROBS: Final = 20
"""Maximum number of alternatives per token. The device returns this many if any row wants log-probabilities."""

MAX_STOP_IDS: Final = 64
"""Maximum number of end and stop ids of one request together."""

MAX_BIASES: Final = 300
"""Maximum number of tokens in a request's `logit_bias`; OpenAI's bound."""

MAX_BAD_TOKENS: Final = 4096
"""Maximum number of tokens in all bad words of one request together."""

PENALTY_WINDOW: Final = 4096
"""Number of latest generated tokens to which penalties apply, so that a long output is not penalized for all of its
tokens."""

NO_TOKEN: Final = -1
"""Unused place of a list of ids on the device, and sampled token of a row whose logits are NaN."""

NO_CHOICE: Final = -2
"""Sampled token of a row whose masks leave no token."""

NO_LIMIT: Final = 2**31 - 1
"""Last position of a row that generates without a limit."""


type Number = int | float

_WORDS: Final[Mapping[str, str]] = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
"""Bounds of a `Range`, in words."""

_KEY: Final = "sampling"
"""Key of a row in the metadata of its dataclass field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Interval of numbers. A bound that is None does not limit. NaN is in no interval that has a bound."""

    ge: Number | None = None
    gt: Number | None = None
    le: Number | None = None
    lt: Number | None = None

    @property
    def bounds(self) -> dict[str, Any]:
        """Bounds by name: the keyword arguments of pydantic's `Field`."""
        named = {name: getattr(self, name) for name in _WORDS}
        return {name: bound for name, bound in named.items() if bound is not None}

    def __contains__(self, value: Number) -> bool:
        is_above = (self.ge is None or value >= self.ge) and (self.gt is None or value > self.gt)
        return is_above and (self.le is None or value <= self.le) and (self.lt is None or value < self.lt)

    def __str__(self) -> str:
        """Returns the rule in words, such as "above 0 and at most 1"."""
        return " and ".join(f"{_WORDS[name]} {_digits(bound)}" for name, bound in self.bounds.items())


@dataclass(frozen=True, slots=True)
class Column:
    """Device array that holds one value, or a list of values, of every row.

    Attributes:
      dtype: Name of the numpy dtype.
      neutral: Value of rows whose request omits the field, and of unused places of a list.
      shape: Shape of a row: `()` for one value, `(n,)` for a list of n places.
    """

    dtype: str
    neutral: Number
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SamplingField:
    """One row of the table.

    Attributes:
      default: Value when neither the request nor the checkpoint sets one.
      valid: Values that the engine accepts.
      request: Values that request bodies accept; None means that bodies don't have the field as a plain number.
      checkpoint: Values that `generation_config.json` accepts; None means that the file cannot set a default.
      column: Device array of the same name; None means that the field is not sent to the device unchanged.
      description: Sentences for the schema of requests; empty if bodies don't have the field as a plain number.
    """

    default: Number | None
    valid: Range
    request: Range | None = None
    checkpoint: Range | None = None
    column: Column | None = None
    description: str = ""

    @property
    def kind(self) -> type:
        """Type of the numbers, int or float."""
        return type(self.default)

    @property
    def declared(self) -> Any:
        """Declaration of a dataclass field as this row."""
        return field(default=self.default, metadata={_KEY: self})


def _digits(bound: Number) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


_ID_LIMIT: Final = 2**24
"""Exclusive upper bound of token ids in parameters, which are checked before a vocabulary is known. A mask has a bit
for each id up to the largest."""

_SHARE: Final = Range(ge=0, le=1)

_LOGIT_CHANGE: Final = Range(ge=-1e30, le=1e30)
"""Range of biases and penalties for which logits stay within float32."""

_LOGIT_RULE: Final = str(_LOGIT_CHANGE)

_PENALTIES_LOOK_BACK: Final = f" Penalties look back on {PENALTY_WINDOW} generated tokens."

_FLOAT: Final = "float32"
_INT: Final = "int32"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Rules by which tokens are chosen and generation stops. Instances are valid once built.

    Attributes:
      max_tokens: Maximum number of tokens to generate. None generates until the model stops; 0 only prefills the
        prompt.
      temperature, top_k, top_p, min_p, typical_p: See the rows' descriptions. A temperature that float32 rounds to 0 is
      greedy decoding, too; `top_p` is above 0 here.
      frequency_penalty, presence_penalty, repetition_penalty: See the rows' descriptions.
      logit_bias: Pairs of id and number that is added to the id's logit, before penalties.
      allowed_token_ids: The only ids that may be chosen; None allows all.
      bad_words: Sequences of ids that must not be generated.
      seed: Seed of all randomness of the request: the same seed gives the same tokens. An unsigned 64-bit number.
      min_tokens: Number of tokens before which no end or stop id is chosen.
      end_token_ids: Ids that end the output (`<eos>`, `<end_of_turn>`). They may still be chosen.
      stop_token_ids: Further such ids, named by the caller and reported as `stop_reason`.
      logprobs: Number of alternatives to report for each generated token. 0 reports only the log-probability of the
        token itself, None nothing. They are the model's log-probabilities, before temperature and masks.
      logprob_token_ids: Further tokens whose log-probabilities are reported with each generated token.
      prompt_logprobs: Number of alternatives to report for each token of the prompt, as in `logprobs`.

      stop_ids: All ids that end the output.
      static_mask: Tokens left by `allowed_token_ids` and by bad words of one token; None if all are left.
      bad_phrases: Bad words of several tokens; None if there are none.

    Raises:
      ParameterError: A value is out of range, or the values leave no token.
    """

    max_tokens: int | None = SamplingField(16, Range(ge=0)).declared
    temperature: float = SamplingField(
        1.0,
        Range(ge=0, le=1e30),
        request=Range(ge=0, le=2),
        checkpoint=Range(ge=0),
        column=Column(_FLOAT, 0.0),
        description="Divisor of the logits; 0 always takes the most likely token.",
    ).declared
    top_k: int = SamplingField(
        0,
        Range(ge=0),
        request=Range(ge=-1, lt=2**31),
        checkpoint=Range(ge=0),
        column=Column(_INT, 0),
        description="Number of most likely tokens to keep, with ties of the last; 0 and -1 keep all.",
    ).declared
    top_p: float = SamplingField(
        1.0,
        Range(gt=0, le=1),
        request=_SHARE,
        checkpoint=Range(gt=0, le=1),
        column=Column(_FLOAT, 1.0),
        description="Probability mass to keep: the smallest set of most likely tokens that reaches it, after `top_k`. "
        "0 takes the most likely token.",
    ).declared
    min_p: float = SamplingField(
        0.0,
        _SHARE,
        request=_SHARE,
        checkpoint=_SHARE,
        column=Column(_FLOAT, 0.0),
        description="Probability, relative to that of the most likely token, below which tokens are dropped.",
    ).declared
    typical_p: float = SamplingField(
        1.0,
        Range(ge=1e-6, le=1),  # float32 may round much smaller numbers to 0
        request=Range(ge=1e-6, le=1),
        checkpoint=Range(gt=0, le=1),
        column=Column(_FLOAT, 1.0),
        description="Probability mass to keep of the remaining tokens, starting with those whose surprise is nearest "
        "to the entropy; ties of the last are kept (locally typical sampling, arXiv 2202.00666).",
    ).declared
    frequency_penalty: float = SamplingField(
        0.0,
        _LOGIT_CHANGE,
        request=Range(ge=-2, le=2),
        column=Column(_FLOAT, 0.0),
        description="Number to subtract from a token's logit for each time it was generated." + _PENALTIES_LOOK_BACK,
    ).declared
    presence_penalty: float = SamplingField(
        0.0,
        _LOGIT_CHANGE,
        request=Range(ge=-2, le=2),
        column=Column(_FLOAT, 0.0),
        description="Number to subtract once from the logit of each token that was generated." + _PENALTIES_LOOK_BACK,
    ).declared
    repetition_penalty: float = SamplingField(
        1.0,
        Range(ge=1e-6, le=1e6),  # no logit leaves the range of float32
        request=Range(ge=1e-6, le=10),
        column=Column(_FLOAT, 1.0),
        description="Divisor of positive and factor of negative logits of tokens in the prompt or the output."
        + _PENALTIES_LOOK_BACK,
    ).declared
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    seed: int = SamplingField(0, Range(ge=0, lt=2**64)).declared
    min_tokens: int = SamplingField(0, Range(ge=0)).declared
    end_token_ids: tuple[int, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = SamplingField(None, Range(ge=0, le=MAX_LOGPROBS)).declared
    logprob_token_ids: tuple[int, ...] = ()
    prompt_logprobs: int | None = SamplingField(None, Range(ge=0, le=MAX_LOGPROBS)).declared
    stop_ids: frozenset[int] = field(init=False, repr=False, compare=False)
    static_mask: StaticMask | None = field(init=False, repr=False, compare=False)
    bad_phrases: PhraseIndex | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, row in SAMPLING_FIELDS.items():
            value = getattr(self, name)
            if value is not None and value not in row.valid:
                raise ParameterError(name, f"be {row.valid}")
        self._check_lists()
        stop_ids = frozenset((*self.end_token_ids, *self.stop_token_ids))
        if len(stop_ids) > MAX_STOP_IDS:
            raise ParameterError("stop_token_ids", f"be at most {MAX_STOP_IDS} with the end ids")
        bad_tokens = {word[0] for word in self.bad_words if len(word) == 1}
        phrases = [word for word in self.bad_words if len(word) > 1]
        is_masked = self.allowed_token_ids is not None or bad_tokens
        mask = StaticMask.of(self.allowed_token_ids, bad_tokens) if is_masked else None
        if mask is not None:
            self._check_choice(mask, stop_ids)
        object.__setattr__(self, "stop_ids", stop_ids)
        object.__setattr__(self, "static_mask", mask)
        object.__setattr__(self, "bad_phrases", phrase_index(phrases) if phrases else None)

    def with_seed(self, seed: int) -> "SamplingParams":
        """Returns the same parameters with another seed. Masks and indexes are shared, not rebuilt.

        Raises:
          ParameterError: The seed is out of range.
        """
        if seed not in (valid := SAMPLING_FIELDS["seed"].valid):
            raise ParameterError("seed", f"be {valid}")
        other = copy.copy(self)
        object.__setattr__(other, "seed", seed)
        return other

    def _check_choice(self, mask: StaticMask, stop_ids: frozenset[int]) -> None:
        """Checks that at least one token may be chosen, for any vocabulary."""
        if mask.is_empty():
            raise ParameterError("bad_words", "leave at least one of allowed_token_ids")
        if self.min_tokens and mask.is_empty(stop_ids):
            raise ParameterError("min_tokens", "be 0 where all of allowed_token_ids end the answer or are bad_words")

    def _check_lists(self) -> None:
        """Checks the fields that hold lists, most of which are empty."""
        biased, biases = [token_id for token_id, _ in self.logit_bias], [bias for _, bias in self.logit_bias]
        ids: dict[str, Collection[int]] = {
            "logit_bias": biased,
            "allowed_token_ids": self.allowed_token_ids or (),
            "bad_words": [*chain.from_iterable(self.bad_words)],
            "end_token_ids": self.end_token_ids,
            "stop_token_ids": self.stop_token_ids,
            "logprob_token_ids": self.logprob_token_ids,
        }
        for name, each in ids.items():
            if each and not (min(each) >= 0 and max(each) < _ID_LIMIT):
                raise ParameterError(name, f"be of token ids, from 0 to {_ID_LIMIT - 1}")
        rules = (
            ("logit_bias", len(biases) <= MAX_BIASES, f"for at most {MAX_BIASES} tokens"),
            ("logit_bias", not [bias for bias in biases if bias not in _LOGIT_CHANGE], _LOGIT_RULE),
            ("allowed_token_ids", self.allowed_token_ids != (), "at least one id"),
            ("bad_words", all(self.bad_words), "of at least one token each"),
            ("bad_words", len(ids["bad_words"]) <= MAX_BAD_TOKENS, f"at most {MAX_BAD_TOKENS} tokens in total"),
            ("stop_token_ids", len(self.stop_token_ids) <= MAX_STOP_IDS, f"at most {MAX_STOP_IDS} ids"),
            ("end_token_ids", len(self.end_token_ids) <= MAX_STOP_IDS, f"at most {MAX_STOP_IDS} ids"),
            ("logprob_token_ids", len(self.logprob_token_ids) <= MAX_LOGPROBS, f"at most {MAX_LOGPROBS} ids"),
            ("logprob_token_ids", self.logprobs is not None or not self.logprob_token_ids, "used with logprobs"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise ParameterError(name, f"be {rule}")


SAMPLING_FIELDS: Final[Mapping[str, SamplingField]] = {
    each.name: each.metadata[_KEY] for each in fields(SamplingParams) if _KEY in each.metadata
}
"""Rows of the table by name."""


@dataclass(frozen=True)
class SamplingState[Array]:
    """Sampling parameters of R rows, as one array per field. `sampling.state` makes it a pytree.

    Arrays have the shapes and dtypes of `SAMPLING_COLUMNS`; arrays with the name of a field of `SamplingParams` hold
    that field.

    Attributes:
      bias_ids, biases: Ids and numbers of `logit_bias`.
      is_masked: Whether the row's token mask applies.
      seed: Low and high word.
      min_position: Position before which stop ids are masked.
      last_position: Position of the last token that may be sampled.
      stop_ids: Ids that end the output.
      named_ids: Ids of `logprob_token_ids`.
      wants_logprobs: Whether the row's log-probabilities are read.
    """

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    typical_p: Array
    frequency_penalty: Array
    presence_penalty: Array
    repetition_penalty: Array
    bias_ids: Array
    biases: Array
    is_masked: Array
    seed: Array
    min_position: Array
    last_position: Array
    stop_ids: Array
    named_ids: Array
    wants_logprobs: Array


NUMBER_COLUMNS: Final[Mapping[str, Column]] = {
    name: row.column for name, row in SAMPLING_FIELDS.items() if row.column is not None
}
"""Columns of `SamplingState` that hold a number of `SamplingParams` unchanged."""

_DERIVED_COLUMNS: Final[Mapping[str, Column]] = {
    "bias_ids": Column(_INT, NO_TOKEN, (MAX_BIASES,)),
    "biases": Column(_FLOAT, 0.0, (MAX_BIASES,)),
    "is_masked": Column("bool", False),
    "seed": Column("uint32", 0, (2,)),
    "min_position": Column(_INT, 0),
    "last_position": Column(_INT, NO_LIMIT),
    "stop_ids": Column(_INT, NO_TOKEN, (MAX_STOP_IDS,)),
    "named_ids": Column(_INT, NO_TOKEN, (MAX_LOGPROBS,)),
    "wants_logprobs": Column("bool", False),
}

SAMPLING_COLUMNS: Final[Mapping[str, Column]] = {
    each.name: NUMBER_COLUMNS.get(each.name) or _DERIVED_COLUMNS[each.name] for each in fields(SamplingState)
}
"""Shapes, dtypes and neutral values of the arrays of `SamplingState`."""
