"""A checkpoint that transformers wrote, with as many key heads as heads, is served from the command line."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from server_process import SHAPES, serving

GOLDEN = Path(__file__).parents[1] / "golden" / "key-heads"
TOLERANCE = 1e-3


@pytest.mark.parametrize("name", ["multi-head"])
def test_log_probabilities_and_greedy_tokens_are_those_of_transformers(name: str) -> None:
    with np.load(GOLDEN / "golden.npz") as file:
        tokens, logits, greedy = (file[f"{name}_{kind}"] for kind in ("tokens", "logits", "greedy"))
    fields: dict[str, Any] = {"logprobs": 1, "temperature": 0, "return_token_ids": True, "ignore_eos": True}
    with (
        serving(str(GOLDEN / name), "--dtype", "float32", *SHAPES) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        scored = client.post(
            "/v1/completions", json={"prompt": tokens.tolist(), "echo": True, "max_tokens": 0, **fields}
        )
        drawn = client.post(
            "/v1/completions", json={"prompt": tokens[:30].tolist(), "max_tokens": len(greedy), **fields}
        )
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    own = logprobs[np.arange(len(tokens) - 1), tokens[1:]]
    found = scored.json()["choices"][0]["logprobs"]["token_logprobs"][1:]
    np.testing.assert_allclose(found, own, rtol=0, atol=TOLERANCE)
    assert drawn.json()["choices"][0]["token_ids"] == greedy.tolist()
