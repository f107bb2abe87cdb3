"""Random configs of small models, as their `config.json` would have them."""

from typing import Any

import hypothesis.strategies as st


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Draws the fields of a config as plain values, since type-checked code may not run inside a strategy."""
    heads = draw(st.sampled_from([1, 2, 4]))
    pattern = draw(
        st.sampled_from([["attention"], ["recurrent", "attention"], ["recurrent", "recurrent", "attention"]])
    )
    fields = {
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([g for g in (1, 2, 4, None) if g is None or heads % g == 0])),
        "block_types": pattern,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "attention_window_size": draw(st.sampled_from([1, 5, 8, 100])),
        "logits_soft_cap": draw(st.sampled_from([None, 12.0, 30.0])),
        "lru_width": draw(st.sampled_from([None, 48])),
        "conv1d_width": draw(st.sampled_from([2, 4])),
        "embeddings_scale_by_sqrt_dim": draw(st.booleans()),
        "rope_theta": draw(st.sampled_from([100.0, 10000.0, 500000.0])),
    }
    return {"model_type": "recurrent_gemma", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, **fields}
