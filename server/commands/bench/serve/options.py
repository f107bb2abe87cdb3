"""Options of `roost bench serve`."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ....client.http_client import Address
from ..workload import LengthRange
from .goodput import Objective


@dataclass(frozen=True, slots=True)
class ServeBenchOptions:
    """Options of `roost bench serve`.

    Attributes:
      address: Address of the server.
      url: The address as the user wrote it.
      model: Id of the model; None takes the first that the server lists.
      endpoint: "completions" or "chat".
      request_rate: Requests per second; infinity sends all requests immediately. Not used with `concurrency`.
      concurrency: Number of open requests; None sends them at a rate.
      num_prompts: Number of measured requests.
      input_len: Prompt lengths in tokens or words.
      output_len: Values of `max_tokens`.
      prompt_text: Whether to send words instead of token ids.
      vocab_size: Exclusive upper bound of the token ids.
      ignore_eos: Whether to request the full length.
      temperature: Sampling temperature.
      api_key: Key that is sent as a bearer token; None sends none.
      warmup: Number of requests sent sequentially before the measurement.
      timeout_s: Maximum time of each request, in seconds.
      goodput: Latency objective; None reports no goodput.
      seed: Seed of prompts, lengths and arrival times.
    """

    address: Address
    url: str
    model: str | None
    endpoint: str
    request_rate: float
    concurrency: int | None
    num_prompts: int
    input_len: LengthRange
    output_len: LengthRange
    prompt_text: bool
    vocab_size: int
    ignore_eos: bool
    temperature: float
    api_key: str | None
    warmup: int
    timeout_s: float
    goodput: Objective | None
    seed: int

    def as_json(self) -> Mapping[str, Any]:
        """Returns the options for a report. It states whether a key was sent, but does not contain the key."""
        texts = {"input_len": str(self.input_len), "output_len": str(self.output_len)}
        rate = str(self.request_rate) if math.isinf(self.request_rate) else self.request_rate
        objective = None if self.goodput is None else str(self.goodput)
        changed = {"request_rate": None if self.concurrency else rate, "goodput": objective}
        given = {**asdict(self), **texts, **changed, "api_key": self.api_key is not None}
        del given["address"]
        return given
