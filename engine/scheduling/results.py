"""Books what a batch's rows have sampled."""

from itertools import takewhile
from typing import Final

from ..core.batch import RowResult
from ..core.errors import ConstraintError, NumericError, RoostError
from ..core.request import FinishReason, TokenLogprobs, TokenOutput
from ..core.sampling_limits import NO_CHOICE
from .masks import NO_CHOICE_TEXT, advance_constraint
from .plan import error_output
from .running_request import RunningRequest

_NOT_FINITE: Final = "the model's activations are not finite; the request was ended"


def book_result(running: RunningRequest, result: RowResult, mask_words: int) -> list[TokenOutput]:
    """Books a row's tokens up to the one that ends the request; the device stopped there too.

    Tokens before a sentinel, which stands for non-finite activations or for masks without a token, are valid. Their
    output comes before the error.

    Args:
      running: Request of the row.
      result: Result with at least one token or sentinel.
      mask_words: Number of words of a token mask.

    Returns:
      One or two outputs; only the last one may end the request.
    """
    valid = tuple(takewhile(lambda token_id: token_id >= 0, result.token_ids))
    outputs = []
    if valid:
        output = _book_tokens(running, valid, result.logprobs)
        outputs.append(_constrained(running, output, mask_words))
    if len(valid) < len(result.token_ids) and not any(output.finish_reason for output in outputs):
        outputs.append(error_output(_sentinel_error(running, result.token_ids[len(valid)])))
    return outputs


def _book_tokens(
    running: RunningRequest, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...] | None
) -> TokenOutput:
    """Returns the output of valid tokens; the first output also describes the prompt."""
    is_first = not running.num_tokens
    count, reason = _count_until_end(running, token_ids)
    tokens = token_ids[:count]
    running.num_tokens += count
    if running.key is not None:
        running.token_ids += tokens
    return TokenOutput(
        token_ids=tokens,
        logprobs=logprobs[:count] if logprobs and count else None,
        prompt_logprobs=_prompt_logprobs(running) if is_first else None,
        finish_reason=reason,
        stop_reason=_stop_reason(running, tokens),
        started_at=running.started_at if is_first else None,
        num_cached=running.num_cached if is_first else 0,
    )


def _prompt_logprobs(running: RunningRequest) -> tuple[TokenLogprobs | None, ...] | None:
    request = running.request
    if request.params.prompt_logprobs is None:
        return None
    return tuple(running.prompt_logprobs[: len(request.prompt_token_ids)])


def _count_until_end(running: RunningRequest, token_ids: tuple[int, ...]) -> tuple[int, FinishReason | None]:
    """Returns the number of tokens that belong to the request, and why it ends with them if it does."""
    params = running.request.params
    if params.max_tokens == 0:
        return 0, FinishReason.LENGTH
    for count, token_id in enumerate(token_ids, 1):
        if token_id in params.stop_ids:
            return count, FinishReason.STOP
        if running.num_tokens + count == params.max_tokens:
            return count, FinishReason.LENGTH
    return len(token_ids), None


def _stop_reason(running: RunningRequest, token_ids: tuple[int, ...]) -> int | None:
    """Returns the last token if it is one of the caller's stop ids."""
    params = running.request.params
    is_stop = bool(token_ids) and token_ids[-1] in params.stop_token_ids and token_ids[-1] not in params.end_token_ids
    return token_ids[-1] if is_stop else None


def _constrained(running: RunningRequest, output: TokenOutput, mask_words: int) -> TokenOutput:
    """Returns the output, or an error's if the constraint fails on its last token."""
    if output.finish_reason is not None:
        return output
    try:
        advance_constraint(running, output.token_ids[-1], mask_words)
    except ConstraintError as error:
        return error_output(error)
    return output


def _sentinel_error(running: RunningRequest, sentinel: int) -> RoostError:
    """Returns the error that a sampled `NO_CHOICE` or `NO_TOKEN` stands for."""
    if sentinel == NO_CHOICE:
        return ConstraintError(NO_CHOICE_TEXT)
    return NumericError(_NOT_FINITE, from_imported_state=running.request.state_is_imported)
