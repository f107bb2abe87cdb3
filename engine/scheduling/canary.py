"""Tells broken model parameters from requests that fail by themselves."""

from collections.abc import Sequence
from typing import Final

from ..core.errors import EngineDeadError, NumericError
from ..core.request import Request
from ..core.sampling_params import SamplingParams
from .plan import RequestOutput

CANARY_ID: Final = "roost-canary"
"""Id of the engine's own request. Its outputs are not delivered."""

_REQUEST: Final = Request(CANARY_ID, (1, 2, 3), SamplingParams(max_tokens=2, temperature=0.0))
"""A request that fails only if the model's parameters are broken: a prefill and a decode step, without a snapshot."""

_MAX_FAILURES: Final = 8
"""Number of requests in a row with non-finite activations after which the engine checks itself. Rows are independent of
each other, so fewer failures are likely caused by the requests' own tokens or states."""


class Canary:
    """Runs a request of the engine's own if one request after the other fails with a `NumericError`."""

    def __init__(self) -> None:
        self._num_failures = 0
        self._is_running = False

    def check(self, outputs: Sequence[RequestOutput]) -> Request | None:
        """Books the outputs of a step; returns a request that the engine has to run, if it is time to check.

        Raises:
          EngineDeadError: The engine's own request failed as well, so the parameters are broken.
        """
        for request_id, output in outputs:
            error = output.error if isinstance(output.error, NumericError) else None
            if request_id == CANARY_ID:
                self._is_running = output.finish_reason is None
                if error is not None:
                    raise EngineDeadError(_message())
            elif error is not None:
                self._num_failures += not error.from_imported_state
            elif output.token_ids:
                self._num_failures = 0
        if self._num_failures < _MAX_FAILURES or self._is_running:
            return None
        self._num_failures, self._is_running = 0, True
        return _REQUEST


def _message() -> str:
    failures = f"the activations of {_MAX_FAILURES} requests in a row were not finite"
    return f"{failures}, and neither were those of the engine's own test prompt"
