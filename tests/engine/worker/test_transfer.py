"""What drafts of new slots are looked up in, and which of them count for a prediction."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from roost.engine.model import speculation
from roost.engine.model.speculation import new_draft_state, record
from roost.engine.types.config import HISTORY, MAX_MATCH, MAX_PREDICTION, Speculation
from roost.engine.types.request import Request
from roost.engine.types.sampling_params import NO_TOKEN
from roost.engine.worker.transfer import histories, prediction_use

propose = jax.jit(speculation.propose, static_argnums=3)
SETTINGS = Speculation(4, min_match=2, max_match=5)
PROMPT = tuple(range(100, 130))
PREDICTION = tuple(range(200, 240))


def request_of(prompt: Sequence[int] = PROMPT, prediction: Sequence[int] = PREDICTION) -> Request:
    return Request("a", prompt, predicted_token_ids=prediction)


def draft(request: Request, generated: Sequence[int]) -> tuple[list[int], int]:
    """Returns the guess after these tokens, and its start; [] without one."""
    length = len(request.prompt_token_ids)
    ring, positions = histories([(request, ())], 1), np.arange(length, length + len(generated))
    ring[0, positions % HISTORY] = generated
    state = new_draft_state(jnp.array(ring))._replace(depth=jnp.array([4]))
    drafts = propose(state, jnp.array(positions[-1:], jnp.int32), jnp.array([4]), SETTINGS)
    return drafts.tokens[0, : int(drafts.counts[0])].tolist(), int(drafts.starts[0])


def used(request: Request, start: int, num_drafted: int, num_accepted: int) -> tuple[list[int], list[int]]:
    """Returns the indices of the prediction's tokens that were drafted, and of those that were accepted."""
    use, size = prediction_use(request, [(start, num_drafted, num_accepted)]), len(request.predicted_token_ids)
    drafted, accepted = ([index for index in range(size) if bits >> index & 1] for bits in (use.drafted, use.accepted))
    return drafted, accepted


def test_without_a_prediction_the_history_is_the_tokens() -> None:
    (ring, empty) = histories([(request_of(prediction=()), (7, 8))], 2)
    assert ring[:32].tolist() == [*PROMPT, 7, 8]
    assert set(ring[32:].tolist()) == set(empty.tolist()) == {NO_TOKEN}


@pytest.mark.parametrize("length", [1, 3, MAX_MATCH, 30, HISTORY, HISTORY + 5, 3 * HISTORY])
def test_the_predictions_first_tokens_follow_the_prompt(length: int) -> None:
    request = request_of(prompt=np.arange(1000, 1000 + length).tolist())
    tokens, start = draft(request, PREDICTION[:1])
    assert tokens == [*PREDICTION[1:5]]
    assert used(request, start, 4, 2) == ([1, 2, 3, 4], [1, 2])


def test_an_output_that_differs_finds_its_way_back() -> None:
    request = request_of()
    assert draft(request, (*PREDICTION[:9], 7))[0] == []
    tokens, start = draft(request, (*PREDICTION[:9], 7, 8, *PREDICTION[20:22]))
    assert tokens == [*PREDICTION[22:26]]
    assert used(request, start, 4, 0) == ([22, 23, 24, 25], [])


def test_a_replayed_request_has_the_same_history() -> None:
    generated = PREDICTION[:9]
    (replayed,) = histories([(request_of(), generated)], 1)
    (new,) = histories([(request_of(), ())], 1)
    (expected,) = np.asarray(record(jnp.array([new]), jnp.array([generated]), jnp.array([30]), jnp.array([9])))
    assert replayed.tolist() == expected.tolist()


def test_a_long_prediction_is_cut_and_found_to_its_end() -> None:
    """The output has 900 tokens that the prediction lacks, and then all of it."""
    prediction = np.arange(10_000, 10_000 + MAX_PREDICTION + 9).tolist()
    request = request_of(prompt=np.arange(5000).tolist(), prediction=prediction)
    assert len(request.predicted_token_ids) == MAX_PREDICTION
    new = np.arange(20_000, 20_900).tolist()
    for length in (2, 1500, MAX_PREDICTION - 4):
        tokens, start = draft(request, [*new, *prediction[:length]])
        assert tokens == prediction[length : length + 4]
        assert used(request, start, 4, 4)[1] == [*range(length, length + 4)]


@pytest.mark.parametrize(
    ("start", "drafted", "accepted"),
    [
        (-30, [], []),  # of the prompt
        (-28, [0, 1], [0]),
        (30 - MAX_MATCH - 2, [38, 39], [38, 39]),
        (30 - MAX_MATCH, [], []),  # of the prompt's last tokens, repeated
        (40, [], []),  # of the output
    ],
)
def test_tokens_of_other_texts_do_not_count(start: int, drafted: list[int], accepted: list[int]) -> None:
    assert used(request_of(), start, 4, 3) == (drafted, accepted)
