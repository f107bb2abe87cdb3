"""How long an answer took, on request, in the names that llama.cpp has made known."""

from collections.abc import Sequence
from typing import TypedDict

from ...generation.delta import Delta
from ...generation.prompts import Prompt
from ...observability.request_record import Times
from ..openai.schemas import GenerationBody


class Timings(TypedDict):
    """`prompt_n` tokens were read and `cache_n` had not to be. `prompt_ms` runs from the request's arrival to its first
    token. Waiting for a slot, and for a turn, is part of it, and `queue_ms` tells how much: it ends when the prompt's
    first chunk is handed to the device.
    """

    queue_ms: float
    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float


class TimingReport:
    """Of all choices of a request together, told when the last of them has ended; nothing unless asked for."""

    def __init__(self, body: GenerationBody, prompts: Sequence[Prompt], num_choices: int) -> None:
        self._wanted = body.return_timings
        self._prompt_n = sum(len(prompt.token_ids) for prompt in prompts)
        self._predicted_n = 0
        self._cache_n = 0
        self._num_open = num_choices
        self._times: list[Times] = []

    def count(self, delta: Delta) -> None:
        self._predicted_n += len(delta.token_ids)
        self._cache_n += delta.num_cached
        if delta.finish_reason is not None:
            self._num_open -= 1
            self._times.append(delta.times)

    def fields(self) -> dict[str, Timings]:
        """What the chunk that was made of the last counted delta says of time."""
        return {"timings": self._timings()} if self._wanted and not self._num_open else {}

    def whole(self, choices: Sequence[Delta]) -> dict[str, Timings]:
        """The same for an answer that is no stream."""
        for choice in choices:
            self.count(choice)
        return self.fields()

    def _timings(self) -> Timings:
        arrived = min(times.arrived for times in self._times)
        started = min(times.started for times in self._times)
        first = min(times.first for times in self._times)
        last = max(times.last for times in self._times)
        prompt_n = self._prompt_n - self._cache_n
        return Timings(
            queue_ms=(started - arrived) * 1000,
            cache_n=self._cache_n,
            prompt_n=prompt_n,
            prompt_ms=(first - arrived) * 1000,
            prompt_per_second=_rate(prompt_n, first - arrived),
            predicted_n=self._predicted_n,
            predicted_ms=(last - first) * 1000,
            predicted_per_second=_rate(self._predicted_n, last - first),
        )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
