"""Models with several key heads give what transformers gives (golden/key-heads)."""

from typing import Any

import numpy as np
import pytest
from roost.engine.checkpoint.source import open_model
from small_models import TINY_A, counting, read_model

GOLDEN = TINY_A.parent / "key-heads"
BLOCK = 4


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(GOLDEN / "golden.npz") as file:
        return dict(file)


@pytest.mark.parametrize(("name", "heads", "theta", "cap"), [("multi-head", 4, 1e4, 30.0), ("grouped", 2, 5e5, 12.0)])
def test_logits_are_those_of_transformers(
    name: str, heads: int, theta: float, cap: float, golden: dict[str, Any]
) -> None:
    """Prefill of chunks past the window, then single steps of the greedy tokens."""
    model = read_model(open_model(str(GOLDEN / name)), "float32", BLOCK)
    config = model.config
    assert (config.num_key_heads, config.rope_theta, config.logits_soft_cap) == (heads, theta, cap)
    tokens, expected, greedy = (golden[f"{name}_{kind}"] for kind in ("tokens", "logits", "greedy"))
    logits, _ = model.run(tokens[None].astype(np.int32), counting([40], 40), model.zero(1))
    np.testing.assert_allclose(logits[0], expected, rtol=0, atol=5e-4)
    prompt = np.zeros((1, 40), np.int32)
    prompt[0, :30] = tokens[:30]
    logits, state = model.run(prompt, counting([30], 40), model.zero(1))
    last = logits[0, 29]
    for step, token in enumerate(greedy):
        assert last.argmax() == token
        logits, state = model.run(np.full((1, 1), token, np.int32), np.full((1, 1), 30 + step, np.int32), state)
        last = logits[0, 0]
