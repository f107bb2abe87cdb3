"""Loss of a trained model in int8: its next-token distributions compared with those in float32."""

import numpy as np
import pytest
from roost.engine.checkpoint.source import ModelSource, open_model
from sentencepiece import SentencePieceProcessor
from small_models import counting, ragged, read_model

TEXT = (
    "Once upon a time there was a little fox who lived at the edge of a forest. Every morning the fox went to the "
    "river to look at the boats. One day a small boat came with a girl in it. The girl said hello, and the fox was "
    "so happy that it jumped up and down. They shared some bread and honey, and the girl told the fox about a big "
    "city by the sea. In the city the houses were tall and at night there were lights in all the windows. The fox "
    "wanted to see it too. But then the sky became dark and it started to rain. The girl was scared of the storm. "
    "The fox showed her the way to an old tree, and there they sat until the sun came back. The girl said thank you, "
    "you are a good friend. From that day on she came every week, and they played by the river until it was dark."
)
STEPS = 256


@pytest.fixture(scope="module")
def demo() -> ModelSource:
    return open_model("demo")


def log_probabilities(demo: ModelSource, tokens: list[int], dtype: str, matrices: str | None = None) -> np.ndarray:
    """Returns distributions `[T, V]` of the token after each token."""
    model = read_model(demo, dtype, 64, matrices=matrices)
    logits, _ = model.run(ragged([np.array(tokens)], STEPS), counting([len(tokens)], STEPS), model.zero(1))
    wide = logits[0, : len(tokens)].astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


@pytest.mark.sweep
def test_distributions_stay_close_to_those_in_float32(demo: ModelSource) -> None:
    """Bounds are above the measured KL of 0.0014 (bfloat16: 0.0001) and below the measured agreement of 97 %."""
    assert demo.directory is not None
    tokenizer = SentencePieceProcessor(model_file=str(demo.directory / "tokenizer.model"))
    tokens = [tokenizer.bos_id(), *tokenizer.encode(TEXT)][:STEPS]
    exact = log_probabilities(demo, tokens, "float32")
    rounded = log_probabilities(demo, tokens, "bfloat16", "int8")
    divergence = (np.exp(exact) * (exact - rounded)).sum(axis=-1).mean()
    agreement = (exact.argmax(axis=-1) == rounded.argmax(axis=-1)).mean()
    print(f"{len(tokens)} tokens: KL {divergence:.5f}, the likeliest token is the same for {agreement:.1%}")
    assert divergence < 0.01
    assert agreement > 0.92
