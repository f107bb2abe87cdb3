"""Reference of the sampler: the distribution from which a row is drawn, in float64, by sorting."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float
from roost.engine.types.sampling_params import PENALTY_WINDOW, SamplingParams


def reference_distribution(
    logits: Float[np.ndarray, " V"],
    params: SamplingParams,
    num_tokens: int = 0,
    prompt: Sequence[int] = (),
    generated: Sequence[int] = (),
    allowed: Iterable[int] | None = None,
) -> Float[np.ndarray, " V"]:
    """Returns the probabilities of the next token; all zero if no token is allowed.

    Args:
      logits: The model's logits.
      params: Sampling parameters of the request.
      num_tokens: Number of tokens generated so far. Below `min_tokens`, no stop id is chosen.
      prompt: Tokens of the prompt, for the repetition penalty.
      generated: Generated tokens, for penalties and bad words.
      allowed: Tokens that an output constraint allows; None allows all.
    """
    logits = np.array(logits, np.float64)
    for token_id, bias in params.logit_bias:
        logits[token_id] += bias
    logits = _penalized(logits, params, prompt, list(generated[-PENALTY_WINDOW:]))
    logits[[*_masked(params, len(logits), num_tokens, generated, allowed)]] = -np.inf
    if logits.max() == -np.inf:
        return np.zeros(len(logits))
    if params.temperature == 0:
        return np.where(np.arange(len(logits)) == np.argmax(logits), 1.0, 0.0)
    return _truncated(np.exp((logits - logits.max()) / params.temperature), params)


def _penalized(
    logits: Float[np.ndarray, " V"], params: SamplingParams, prompt: Sequence[int], generated: list[int]
) -> Float[np.ndarray, " V"]:
    """Returns the logits with penalties applied token by token."""
    logits = logits.copy()
    for token in set(prompt) | set(generated):
        logits[token] *= params.repetition_penalty ** (-1 if logits[token] > 0 else 1)
    for token in set(generated):
        logits[token] -= params.presence_penalty + params.frequency_penalty * generated.count(token)
    return logits


def _masked(
    params: SamplingParams, vocab_size: int, num_tokens: int, generated: Sequence[int], allowed: Iterable[int] | None
) -> set[int]:
    """Returns the ids that may not be chosen, independent of their logits."""
    masked = {word[-1] for word in params.bad_words if [*generated][len(generated) - len(word) + 1 :] == [*word[:-1]]}
    for ids in (params.allowed_token_ids, allowed):
        if ids is not None:
            masked |= set(range(vocab_size)) - set(ids)
    return masked | set(params.stop_ids if num_tokens < params.min_tokens else ())


def _truncated(weights: Float[np.ndarray, " V"], params: SamplingParams) -> Float[np.ndarray, " V"]:
    """Returns the probabilities of the tokens that truncation keeps, from weights of which the largest is 1."""
    ordered = np.sort(weights)[::-1]
    if params.top_k:
        weights[weights < ordered[min(params.top_k, len(ordered)) - 1]] = 0
    if params.top_p < 1:
        ordered = np.sort(weights)[::-1]
        enough = np.searchsorted(np.cumsum(ordered), params.top_p * ordered.sum())
        weights[weights < ordered[min(enough, len(ordered) - 1)]] = 0
    weights[weights < params.min_p] = 0
    probabilities = np.asarray(weights / weights.sum())
    return probabilities if params.typical_p == 1 else _typical(probabilities, params.typical_p)


def _typical(probabilities: Float[np.ndarray, " V"], mass: float) -> Float[np.ndarray, " V"]:
    """Keeps the tokens whose surprise is nearest to the entropy (locally typical sampling, arXiv 2202.00666)."""
    possible = probabilities[probabilities > 0]
    entropy = -np.sum(possible * np.log(possible))
    with np.errstate(divide="ignore"):
        distances = np.abs(-np.log(probabilities) - entropy)
    order = np.argsort(distances)
    enough = int(np.searchsorted(np.cumsum(probabilities[order]), mass))
    farthest = distances[order][min(enough, len(order) - 1)]
    kept = np.where(distances <= farthest, probabilities, 0)
    return np.asarray(kept / kept.sum())
