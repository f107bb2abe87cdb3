"""A request has the same bits in steps of 1, 4, 8 and 16 slots."""

from typing import Any

import numpy as np
import pytest
from roost.engine import (
    EngineConfig,
    EngineCore,
    Request,
    SamplingParams,
    Scheduler,
    TokenLogprobs,
    load_runner,
    open_model,
)
from small_models import TINY_A
from sweeps import swept


def serve(core: EngineCore, requests: list[Request]) -> dict[str, list[tuple[int, TokenLogprobs]]]:
    """Returns the tokens of each request, with their log-probabilities."""
    outputs: dict[str, list[tuple[int, TokenLogprobs]]] = {request.id: [] for request in requests}
    for request in requests:
        core.add(request)
    while not core.is_idle:
        for name, output in core.step():
            outputs[name] += zip(output.token_ids, output.logprobs or (), strict=True)
    return outputs


@pytest.mark.parametrize(
    "fields", [{"dtype": "float32"}, *swept({"dtype": "bfloat16"}, {"dtype": "float32", "quantize": "int8"})], ids=str
)
def test_requests_alone_are_those_in_a_crowd(fields: dict[str, Any]) -> None:
    config = EngineConfig(16, prefill_chunk=64, **fields)
    runner = load_runner(open_model(str(TINY_A / "hf")), config)
    rng = np.random.default_rng(0)
    requests = [
        Request(
            str(index),
            tuple(rng.integers(3, 300, 5 + 3 * index).tolist()),
            SamplingParams(max_tokens=30, temperature=0.7, seed=index, logprobs=2),
        )
        for index in range(16)
    ]

    def served(some: list[Request]) -> dict[str, list[tuple[int, TokenLogprobs]]]:
        return serve(EngineCore(Scheduler(runner.served.slots, 100, runner.limits), runner), some)

    alone = served(requests[:1]) | served(requests[1:2])
    for count in (3, 7, 16):
        crowd = served(requests[:count])
        assert {name: crowd[name] for name in alone} == alone
    runner.close()
