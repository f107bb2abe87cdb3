"""Responses of a server that drafts tokens equal those of one that does not, under mixed load."""

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from server_process import SHAPES, serving

pytestmark = pytest.mark.sweep

MODEL = str(Path(__file__).parents[1] / "golden" / "tiny-a" / "hf")
DRAFTS = ("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1}')
NUM_REQUESTS = 1000


@pytest.fixture(scope="module")
def clients() -> Iterator[list[httpx.Client]]:
    """Clients of a server without drafts, and of one with them."""
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(MODEL, "--dtype", "float32", *SHAPES, *more)) for more in ((), DRAFTS)]
        yield [stack.enter_context(httpx.Client(base_url=server.url, timeout=600)) for server in servers]


def mixed(number: int) -> dict[str, Any]:
    """Returns the body of a request: a repetitive prompt, and some of all fields."""
    rng = np.random.default_rng(number)
    unit = rng.integers(3, 320, rng.integers(1, 9)).tolist()
    body: dict[str, Any] = {
        "prompt": (unit * 80)[: rng.integers(1, 80)],
        "max_tokens": int(rng.integers(10, 60)),
        "temperature": float(rng.choice([0, 0, 0.2, 1])),
        "seed": number,
        "logprobs": int(rng.integers(0, 3)),
        "return_token_ids": True,
    }
    some: Sequence[dict[str, Any]] = (
        {"n": 3},
        {"top_p": 0.9},
        {"top_k": 5},
        {"frequency_penalty": 0.3},
        {"min_tokens": 9},
    )
    for fields in rng.choice(np.array(some, object), rng.integers(0, 3), replace=False):
        body |= fields
    return body


def choices(client: httpx.Client) -> list[Any]:
    with ThreadPoolExecutor(8) as pool:
        responses = list(
            pool.map(lambda number: client.post("/v1/completions", json=mixed(number)), range(NUM_REQUESTS))
        )
    assert {response.status_code for response in responses} == {200}
    return [response.json()["choices"] for response in responses]


def drafted(client: httpx.Client) -> Mapping[str, float]:
    page = client.get("/metrics").text
    return {
        name: float(value)
        for name, value in re.findall(r"^roost_spec_decode_num_(\w+)_total (\S+)$", page, re.MULTILINE)
    }


def test_mixed_requests_get_the_same_tokens_and_log_probabilities(clients: list[httpx.Client]) -> None:
    plain, drafting = clients
    assert choices(drafting) == choices(plain)
    counts = drafted(drafting)
    assert 0 < counts["accepted_tokens"] < counts["draft_tokens"]
    assert not drafted(plain)
