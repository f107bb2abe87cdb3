"""A Hugging Face checkpoint yields the official implementation's results through HTTP (golden/tiny-a)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from server_process import SHAPES, serving

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny-a"
TOLERANCE = 5e-4
"""Tolerance of logits according to golden/tiny-a/README.md."""


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(GOLDEN / "golden.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with (
        serving(str(GOLDEN / "hf"), "--dtype", "float32", *SHAPES, programs="golden") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client


def complete(client: httpx.Client, prompt: Any, **fields: Any) -> list[dict[str, Any]]:
    response = client.post("/v1/completions", json={"prompt": prompt, "logprobs": 20, **fields})
    assert response.status_code == 200, response.text
    return response.json()["choices"]


def log_softmax(logits: Any) -> Any:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def assert_close(found: Sequence[dict[str, float]], expected: Any) -> None:
    """Compares the top 20 tokens at each position; tokens are named by id, since there is no tokenizer."""
    assert len(found) == len(expected)
    for top, row in zip(found, expected, strict=True):
        assert len(top) >= 20
        for name, logprob in top.items():
            assert logprob == pytest.approx(row[int(name.removeprefix("token_id:"))], abs=TOLERANCE)


def test_a_full_pass(client: httpx.Client, golden: dict[str, Any]) -> None:
    tokens = golden["full_tokens"][0]
    (choice,) = complete(client, tokens.tolist(), echo=True, max_tokens=0)
    logprobs = choice["logprobs"]
    expected = log_softmax(golden["full_logits"][0])[:-1]
    assert_close(logprobs["top_logprobs"][1:], expected)
    own = expected[np.arange(len(expected)), tokens[1:]]
    np.testing.assert_allclose(logprobs["token_logprobs"][1:], own, atol=TOLERANCE)


def test_prefill_and_decode_past_the_window_in_a_ragged_batch(client: httpx.Client, golden: dict[str, Any]) -> None:
    prompts = [golden[f"sampler_prompt_{i}"].reshape(-1).tolist() for i in range(3)]
    fields = {"max_tokens": 24, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    for index, choice in enumerate(complete(client, prompts, **fields)):
        assert choice["token_ids"] == golden["sampler_alone_tokens"][index].tolist()
        assert_close(choice["logprobs"]["top_logprobs"], log_softmax(golden["sampler_alone_logits"][index]))


def test_prompts_of_a_token_or_two(client: httpx.Client, golden: dict[str, Any]) -> None:
    prompts = [golden[f"short_prompt_{i}"].reshape(-1).tolist() for i in range(3)]
    fields = {"max_tokens": 4, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    for index, choice in enumerate(complete(client, prompts, **fields)):
        assert choice["token_ids"] == golden[f"short_alone_tokens_{index}"].tolist()
        assert_close(choice["logprobs"]["top_logprobs"], log_softmax(golden[f"short_alone_logits_{index}"]))
