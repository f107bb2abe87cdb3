"""Random configs, served from the command line, give the reference's log-probabilities and greedy tokens over HTTP."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from random_configs import configs
from reference_griffin import reference_logits
from roost.engine.checkpoint.weights import checkpoint_tensors
from roost.engine.model.config import config_from_hf
from safetensors.numpy import save_file
from server_process import serving
from small_models import SmallModel, noisy_model

PROMPT, GENERATED = 70, 6
TOLERANCE = 1e-3
OPTIONS = ("--dtype", "float32", "--slots", "2", "--prefill-chunk", "64", "--state-cache-gib", "0")


def written(fields: Mapping[str, Any], folder: Path) -> SmallModel:
    """Writes a checkpoint with random weights into a folder."""
    model = noisy_model(config_from_hf(fields), seed=3)
    tensors = {name: np.array(value) for name, value in checkpoint_tensors(model.params, model.config).items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**fields, "torch_dtype": "float32"}))
    return model


def logprobs(model: SmallModel, tokens: np.ndarray) -> np.ndarray:
    """Returns the reference's log-probabilities `[T, V]` after each token, in float64."""
    logits = reference_logits(model.config, model.params, tokens)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


@pytest.mark.sweep
@pytest.mark.timeout(3600)
@given(fields=configs())
@settings(max_examples=40, phases=[Phase.generate])  # each example is a server, too slow to shrink
def test_random_configs_equal_the_reference_over_http(fields: dict[str, Any]) -> None:
    rng = np.random.default_rng(4)
    request: dict[str, Any] = {"logprobs": 1, "temperature": 0, "return_token_ids": True, "ignore_eos": True}
    with tempfile.TemporaryDirectory() as name:
        model = written(fields, Path(name))
        prompt = rng.integers(0, model.config.vocab_size, PROMPT, np.int32)
        with serving(name, *OPTIONS) as server, httpx.Client(base_url=server.url, timeout=60) as client:
            body = {"prompt": prompt.tolist(), "echo": True, "max_tokens": GENERATED, **request}
            answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    tokens = np.array([*prompt, *choice["token_ids"][-GENERATED:]], np.int32)
    expected = logprobs(model, tokens[:-1])
    np.testing.assert_array_equal(tokens[PROMPT:], expected[PROMPT - 1 :].argmax(axis=-1))
    own = expected[np.arange(len(tokens) - 1), tokens[1:]]
    np.testing.assert_allclose(choice["logprobs"]["token_logprobs"][1:], own, rtol=0, atol=TOLERANCE)
