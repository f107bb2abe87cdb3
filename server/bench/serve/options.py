"""What `roost bench serve` is asked to do."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...client.http_client import Address
from ..lengths import LengthRange
from .goodput import Objective


@dataclass(frozen=True, slots=True)
class Options:
    """
    Attributes:
      model: None takes the first that the server lists.
      request_rate: per second, infinity for all at once; not used with `concurrency`.
      concurrency: requests under way at any time; None where they come at a rate.
      prompt_text: send words, also where token ids could be sent.
      vocab_size: token ids lie below it.
      warmup: requests sent one after the other before anything is measured.
      timeout_s: for each request.
      goodput: None asks for none.
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
        """All but the key, of which it tells whether there was one."""
        texts = {"input_len": str(self.input_len), "output_len": str(self.output_len)}
        rate = str(self.request_rate) if math.isinf(self.request_rate) else self.request_rate
        objective = None if self.goodput is None else str(self.goodput)
        changed = {"request_rate": None if self.concurrency else rate, "goodput": objective}
        given = {**asdict(self), **texts, **changed, "api_key": self.api_key is not None}
        del given["address"]
        return given
