"""What clients have received of answers."""

import gc
import tracemalloc

import pytest
from roost.server.generation import sent_responses
from roost.server.generation.sent_responses import SentChoice, SentResponses
from roost.server.tenancy.tenant import tenant


def test_an_answer_is_known_while_it_is_sent_and_afterwards() -> None:
    answers = SentResponses()
    with answers.track("a", 2) as sent:
        assert answers.find("a", 1) == SentChoice("a-1", 0)
        sent.num_tokens[1] = 5
        assert answers.find("a", 1) == SentChoice("a-1", 5)
        sent.num_tokens[1] = 7
    assert answers.find("a", 1) == SentChoice("a-1", 7)
    assert answers.find("a", 0) == SentChoice("a-0", 0)
    assert answers.find("a", 2) is None
    assert answers.find("b", 0) is None


def test_choices_may_come_in_another_order() -> None:
    answers = SentResponses()
    with answers.track("a", 4) as sent:
        sent.num_tokens[3] = 9
        sent.reorder([3, 1])
    assert answers.find("a", 0) == SentChoice("a-3", 9)
    assert answers.find("a", 1) == SentChoice("a-1", 0)
    assert answers.find("a", 2) is None


def test_others_answers_are_as_unknown_as_none() -> None:
    answers = SentResponses()
    token = tenant.set("one")
    with answers.track("a", 1):
        tenant.set("two")
        assert answers.find("a", 0) is None
    assert answers.find("a", 0) is None
    tenant.set("one")
    assert answers.find("a", 0) is not None
    tenant.reset(token)


def test_the_oldest_of_the_tenant_with_most_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are still being sent stay."""
    monkeypatch.setattr(sent_responses, "MAX_RESPONSES", 10)
    answers = SentResponses()
    token = tenant.set("one")
    with answers.track("mine", 1):
        pass
    tenant.set("two")
    with answers.track("running", 1):
        for number in range(50):
            with answers.track(f"{number}", 1):
                pass
        assert answers.find("running", 0) is not None
    assert [number for number in range(50) if answers.find(f"{number}", 0) is not None] == list(range(42, 50))
    assert answers.find("running", 0) is not None
    tenant.set("one")
    assert answers.find("mine", 0) is not None
    tenant.reset(token)


@pytest.mark.parametrize("num_choices", [1, 2000])
def test_what_is_counted_is_what_is_taken(num_choices: int) -> None:
    answers = SentResponses()
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(200):
            with answers.track(f"{number:020}", num_choices) as sent:
                sent.reorder(range(num_choices)[::-1])
        del sent
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert answers.find(f"{0:020}", 0) is not None
    assert taken <= 1.25 * answers.num_bytes
    if num_choices > 1:
        assert answers.num_bytes <= 1.25 * taken
