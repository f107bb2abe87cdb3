"""The values that cross the engine's door: a request on the way in, tokens on the way out. All are frozen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from .errors import RoostError
from .output_constraint import Constraint
from .sampling_params import SamplingParams
from .snapshot import Snapshot


class FinishReason(StrEnum):
    """Why a stream of tokens ended. ABORT means that the caller asked for it, ERROR that something of it failed."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to go on with.

    Attributes:
      id: unique among the requests that are alive.
      prompt_token_ids: at least one id, each within the vocabulary; used as given (no BOS is added).
      params: see `SamplingParams`.
      constraint: decides token by token what may come; it belongs to this request alone.
      fork_of: a request with the same prompt that was added before; while that one still reads the prompt, this one
        waits for it and then goes on from a copy of its state.
      stepwise: somebody may end it after any token, as stop strings do; so its tokens are made one at a time.
      tenant: who shares slots and queue fairly with the others; "" where there is one for all.
      priority: lower ones get a slot first, among the tenant's own.
      start_by, deadline: until when it has to have a slot, and to be done; in seconds of `time.monotonic`.
      cache_salt: it shares remembered states only with requests of the same salt.
      state: of the prompt's beginning, on the grid, if the caller has one.
      state_is_imported: Whether `state` came from a file, or from a request that went on from one. Activations that
        are not numbers say nothing about the parameters then.
    """

    id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    stepwise: bool = False
    constraint: Constraint | None = None
    fork_of: str | None = None
    tenant: str = ""
    priority: int = 0
    start_by: float = math.inf
    deadline: float = math.inf
    cache_salt: str = ""
    state: Snapshot | None = None
    state_is_imported: bool = False

    def __post_init__(self) -> None:
        if not self.prompt_token_ids:
            raise ValueError("prompt must hold at least one token")


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log-probabilities at one place: the token's own, (id, logprob) of the likeliest, best first, and the same
    of the request's `logprob_token_ids`, in their order."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    named: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """What one step gave to one request.

    Attributes:
      token_ids: the new tokens, the end or stop id included; empty where the stream ends without one.
      logprobs: one entry per new token, if asked for.
      prompt_logprobs: on the first output only, if asked for: one entry per prompt token; the first is None.
      finish_reason: set on the last output of a stream.
      stop_reason: the id from `stop_token_ids` that ended it, if one did.
      num_cached: on the first output only: prompt tokens whose state was remembered, so that they were not read.
      error: what went wrong, with `FinishReason.ERROR`.
      started_at: on the first output only: when the prompt's first chunk was handed to the device, in seconds of
        `time.monotonic`.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    started_at: float | None = field(default=None, compare=False)
    error: RoostError | None = None
    num_cached: int = 0


def join_outputs(outputs: Sequence[TokenOutput]) -> TokenOutput:
    """Returns consecutive outputs of one request as one."""
    if len(outputs) == 1:
        return outputs[0]
    first, last = outputs[0], outputs[-1]
    wants_logprobs = any(output.logprobs is not None for output in outputs)
    return replace(
        first,
        token_ids=tuple(token_id for output in outputs for token_id in output.token_ids),
        logprobs=tuple(entry for output in outputs for entry in output.logprobs or ()) if wants_logprobs else None,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        error=last.error,
    )
