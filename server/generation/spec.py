"""The request for a generation, independent of the API that received it, and the memory that its response may take.

The memory is computed before anything is generated. All sizes include everything that one token needs: the engine's
output, the response's objects, and JSON.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from ...engine import Replay, SamplingParams
from ..constraints.output_constraint import OutputConstraint
from ..errors.request_errors import ApiError, bad_value
from ..text.tokenizer import Tokenizer
from .prompts import Prompt
from .state_store import StoredState


@dataclass(frozen=True, slots=True)
class PromptCopies:
    """Parts of the prompts that a response repeats.

    Attributes:
      token_ids: Number of copies of each prompt's token ids.
      logprobs: Number of alternatives of each prompt token in `prompt_logprobs`; None without them.
      is_echoed: Whether every choice begins with the prompt's text.
      echo_logprobs: Number of alternatives of each token of that text; None without log-probabilities.
    """

    token_ids: int = 0
    logprobs: int | None = None
    is_echoed: bool = False
    echo_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """A request for choices of one or several prompts.

    Attributes:
      prompts: Prompts, with at least one token each.
      params: Sampling parameters of the choices of each prompt, which differ in their seeds.
      constraint: Constraint on the output of every choice.
      stop: Stop strings.
      include_stop: Whether the output includes the stop string, or the text of the stop token, that ended it.
      ignore_eos: Whether end tokens do not end the output.
      may_call: Whether the output may consist of tool calls.
      sends_ids: Whether clients receive token ids instead of text.
      holds_output: Whether the whole output is held until the response ends, as opposed to streamed and discarded.
      copies: Parts of the prompts that the response repeats.
      state: Saved state that all prompts continue. The prompts already include its token history.
      cache_salt: Name of a separate prefix cache: requests share cached states only with the same salt.
      prediction: Text that the output is expected to begin with; empty without a prediction.
      priority: Scheduling priority; lower values are scheduled first.
      queue_timeout_s: Maximum time without a slot, in seconds.
      timeout_s: Maximum time until the last token, in seconds.
      earlier_ids: Tokens of the only choice that another replica has generated. They are prefilled as part of the
        prompt, so the remaining tokens may differ from the tokens of that replica.
      replay: The same tokens, decoded again on an engine like that replica's, so that nothing differs; None otherwise.
    """

    prompts: Sequence[Prompt]
    params: Sequence[SamplingParams]
    constraint: OutputConstraint | None = None
    stop: Sequence[str] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    may_call: bool = False
    sends_ids: bool = False
    holds_output: bool = True
    copies: PromptCopies = PromptCopies()
    state: StoredState | None = None
    cache_salt: str = ""
    prediction: str = ""
    priority: int = 0
    queue_timeout_s: float | None = None
    timeout_s: float | None = None
    earlier_ids: tuple[int, ...] = ()
    replay: Replay | None = None


MAX_RESPONSE_BYTES: Final = 256 * 2**20
"""Room for about 750,000 tokens, or 20,000 with 20 alternatives each."""

_TOKEN_BYTES: Final = 360
"""Memory of a generated token: mostly the objects that carry it."""

_ALTERNATIVE_BYTES: Final = 640
"""Memory of a log-probability with the name of its token, of 16 bytes."""

_NAME_BYTES: Final = 24
"""Memory of one byte of a token's name, in all its forms."""

_TEXT_BYTES: Final = 8
"""Memory of one byte of repeated prompt text: wide characters take 4 bytes each, and JSON may escape them."""

_ID_BYTES: Final = 12
"""Memory of a repeated token id, as JSON."""


def response_size(spec: GenerationSpec, max_token_bytes: int) -> tuple[int, Sequence[SamplingParams]]:
    """Returns the memory of what a response repeats of its prompts, and the sampling parameters of each choice of a
    prompt, limited to the tokens that a whole response has room for.

    Args:
      max_token_bytes: Length of the longest token's text.

    Raises:
      ApiError: 400, the response could hold more than `MAX_RESPONSE_BYTES`.
    """
    parts, params = _prompt_parts(spec, max_token_bytes), spec.params
    prompt_bytes = sum(parts.values())
    if prompt_bytes > MAX_RESPONSE_BYTES:
        largest = max(parts, key=lambda param: parts[param])
        fix = f"leave {largest} out, or send a lower n, fewer or shorter prompts"
        raise _too_large(largest, prompt_bytes, fix)
    if not spec.holds_output:
        return prompt_bytes, params
    first, token_bytes = params[0], _TOKEN_BYTES
    if first.logprobs is not None:
        token_bytes += _entry_bytes(first.logprobs + len(first.logprob_token_ids), max_token_bytes)
    token_bytes *= len(spec.prompts) * len(params)  # a token of each choice
    room = max((MAX_RESPONSE_BYTES - prompt_bytes) // token_bytes, 1)
    if first.min_tokens > room:
        fix = "send a lower min_tokens or n, fewer logprobs, or stream: true"
        raise _too_large("min_tokens", prompt_bytes + first.min_tokens * token_bytes, fix)
    if first.max_tokens is None or first.max_tokens > room:
        params = [replace(each, max_tokens=room) for each in params]
    return prompt_bytes, params


def text_response_bytes(token_ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """Returns the maximum memory of a response with the text of these ids, and the ids themselves."""
    return len(token_ids) * (_ID_BYTES + 3 * tokenizer.max_token_bytes)


def _prompt_parts(spec: GenerationSpec, max_token_bytes: int) -> dict[str, int]:
    """Returns the memory of each repeated part of the prompts, by the field that requests it."""
    copies, num_candidates = spec.copies, len(spec.params)
    num_tokens = sum(len(prompt.token_ids) for prompt in spec.prompts)
    parts = {}
    if copies.logprobs is not None:
        parts["prompt_logprobs"] = num_tokens * _entry_bytes(copies.logprobs, max_token_bytes) * num_candidates
    if copies.token_ids:
        parts["return_token_ids"] = num_tokens * copies.token_ids * _ID_BYTES
    if copies.is_echoed:
        each = num_tokens * max_token_bytes * _TEXT_BYTES
        if copies.echo_logprobs is not None:
            each += num_tokens * _entry_bytes(copies.echo_logprobs, max_token_bytes)
        parts["echo"] = each * num_candidates
    return parts


def _entry_bytes(num_alternatives: int, max_token_bytes: int) -> int:
    """Returns the memory of one token's log-probability and its alternatives, if all have the longest names."""
    return _ALTERNATIVE_BYTES * (num_alternatives + 1) + _NAME_BYTES * max_token_bytes


def _too_large(param: str, num_bytes: int, fix: str) -> ApiError:
    """Returns a 400 for a request whose response could never be held in memory."""
    size = f"{num_bytes / 2**20:.0f} MiB, and at most {MAX_RESPONSE_BYTES / 2**20:.0f} MiB are allowed"
    return bad_value(param, f"{param}: the answer could take {size}: {fix}")
