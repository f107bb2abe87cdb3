"""The engine with several key heads: the invariance tests of other modules, and saved states."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from roost.engine import EngineConfig, ModelRunner, load_runner, open_model
from roost.engine.types.snapshot import unpack
from sweeps import swept
from test_int8_window import PROMPT, ask, make_core, saved
from test_resume import (  # noqa: F401 - collected here again, with this module's runner
    test_outputs_with_cache_equal_outputs_without,
    test_restore_between_two_block_boundaries,
)
from test_runner import (  # noqa: F401 - likewise
    SLOTS,
    TINY,
    test_forks_get_what_they_would_get_alone,
    test_in_any_crowd_a_request_gets_what_it_gets_alone,
    test_prompt_logprobs_do_not_depend_on_the_chunks,
    test_what_is_no_number_ends_its_own_request_alone,
)

KINDS: list[Any] = [(2, "float32", None, None), (2, "bfloat16", "int8", "int8")]
OTHERS: list[Any] = [
    (4, "float32", None, None),
    (2, "bfloat16", None, None),
    (4, "bfloat16", None, None),
    (2, "bfloat16", "int8", None),
    (4, "bfloat16", "int8", "int8"),
    (4, "float32", None, "int8"),
]
"""Key heads of four heads, and dtypes of activations, matrices and windows; None for that of activations."""


LAYERS = {"num_hidden_layers": 4, "_block_types": ["recurrent", "attention"]}
"""Two of each kind, which compile faster than the golden model's six."""


@pytest.fixture(scope="module", params=[*KINDS, *swept(*((kind,) for kind in OTHERS))], ids=str)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelRunner]:
    heads, dtype, quantize, kv_dtype = request.param
    fields = json.loads((TINY / "hf" / "config.json").read_text()) | {"num_key_value_heads": heads, **LAYERS}
    path = tmp_path_factory.mktemp("many") / "config.json"
    path.write_text(json.dumps(fields))
    kinds = {"dtype": dtype, "quantize": quantize, "kv_dtype": kv_dtype}
    config = EngineConfig(SLOTS, prefill_chunk=64, state_cache_inexact=True, **kinds)
    runner = load_runner(open_model(f"random:{path}"), config)
    yield runner
    assert runner.compiles_since_ready == 0
    runner.close()


def test_a_saved_state_is_resumed_as_if_prefilled(runner: ModelRunner) -> None:
    data, config = saved(runner), runner.served.config
    state = runner.state_format.load(data)
    prompt = (*state.token_ids, 7, 8, 9)
    tokens, num_cached = ask(make_core(runner), "b", prompt, state=state.snapshot)
    assert num_cached == 256 < len(PROMPT)
    assert tokens == ask(make_core(runner), "b", prompt)[0]
    window = unpack(data)[0]["window"]
    layers, scale = config.block_types.count("attention"), 4 if config.kv_dtype == "int8" else 0
    assert window.shape[1:] == (layers, 2, config.num_key_heads, config.head_dim + scale)
