"""Layer slices of equal layers are one compiled program, with the bits of one slice of all layers."""

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

import jax
import numpy as np
import pytest
from cache_settings import restored
from roost.engine import EngineConfig, ModelRunner, Request, SamplingParams, builder, load_runner, open_model
from roost.engine.devices.platform import Platform, choose_platform
from roost.engine.model.sharding import Collectives
from roost.engine.worker.served import PrefillShape, equal_slices
from test_runner import SLOTS, TINY, serve, states_of

LAYERS, SLICES = 8, 4
PROMPT = tuple(range(3, 133))

type Start = Callable[[int], tuple[ModelRunner, list[tuple[int, int]]]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Returns a function that starts a random model in int8, in slices of some layers each.

    The function returns the numbers of compiled programs and of all, as they were reported.
    """
    shape = {"num_hidden_layers": LAYERS, "block_types": ["recurrent", "attention"]}
    folder = tmp_path_factory.mktemp("model")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads((TINY / "hf" / "config.json").read_text()) | shape))
    runners: list[ModelRunner] = []

    def start(layers: int) -> tuple[ModelRunner, list[tuple[int, int]]]:
        reports: list[tuple[int, int]] = []

        def report(stage: str, done: int, total: int) -> None:
            if stage == "compile":
                reports.append((done, total))

        settings = EngineConfig(
            SLOTS, prefill_chunk=64, dtype="bfloat16", quantize="int8", compile_cache=folder / "programs"
        )
        with sliced(layers), restored():
            runners.append(load_runner(open_model(f"random:{path}"), settings, report))
        return runners[-1], reports

    yield start
    for runner in runners:
        runner.close()


@contextmanager
def sliced(layers: int) -> Iterator[None]:
    def choose_sliced(shards: Collectives, without: Collection[str]) -> Platform:
        return replace(choose_platform(shards, without), layers_per_slice=layers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "choose_platform", choose_sliced)
        yield


def test_equal_slices_are_compiled_once_and_have_the_bits_of_one_slice(start: Start) -> None:
    (whole, all_compiled), (runner, reports) = start(LAYERS), start(LAYERS // SLICES)
    (total,) = {total for _, total in all_compiled}
    assert sorted(reports) == [(done, total + 2) for done in range(1, total + 3)]

    slices = runner.executor.programs.prefill[PrefillShape(1, 64)]
    assert len({program.label for program in slices}) == SLICES
    codes = [id(runner.executor.compiled[program.label]) for program in slices]
    assert [codes.index(code) for code in codes] == [0, 1, 1, 3]

    request = Request("a", PROMPT, SamplingParams(max_tokens=6, temperature=0.0, logprobs=2, prompt_logprobs=1))
    assert serve(runner, [request]) == serve(whole, [request])
    for one, other in zip(jax.tree.leaves(states_of(runner)), jax.tree.leaves(states_of(whole)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("kinds", "sizes", "firsts"),
    [
        ("rrarrarrarr", (3, 3, 3, 2), (0, 1, 1, 3)),
        ("rrarrarrarra", (3, 3, 3, 3), (0, 1, 1, 3)),
        ("rarrarar", (2, 2, 2, 2), (0, 1, 2, 3)),
        ("rarararara", (2, 2, 2, 2, 2), (0, 1, 1, 1, 4)),
        ("rr", (1, 1), (0, 1)),
        ("rra", (3,), (0,)),
    ],
)
def test_slices_between_the_first_and_the_last_are_equal_if_their_kinds_are(
    kinds: str, sizes: tuple[int, ...], firsts: tuple[int, ...]
) -> None:
    ends = np.cumsum(sizes).tolist()
    slices = [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    assert equal_slices(slices, tuple(kinds)) == firsts
