"""Tests of responses that are found by id, above all of the records of what clients have received."""

import gc
import tracemalloc
from array import array
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from roost.server.generation import service
from roost.server.generation.generation import Generation, SentResponse
from roost.server.generation.service import TrackedResponses
from roost.server.tenants import tenant


@contextmanager
def tracked(responses: TrackedResponses, response_id: str, num_choices: int) -> Iterator[SentResponse]:
    """Tracks a response without an HTTP request of its own, and gives the record of what was sent."""
    generation = Generation(num_choices)
    with responses.track(generation, response_id, "-"):
        yield generation.sent


def test_response_is_found_while_it_is_sent_and_afterwards() -> None:
    responses = TrackedResponses()
    with tracked(responses, "a", 2) as sent:
        assert responses.find("a", 1) == ("a-1", 0)
        sent.num_tokens[1] = 5
        assert responses.find("a", 1) == ("a-1", 5)
        sent.num_tokens[1] = 7
    assert responses.find("a", 1) == ("a-1", 7)
    assert responses.find("a", 0) == ("a-0", 0)
    assert responses.find("a", 2) is None
    assert responses.find("b", 0) is None


def test_a_response_that_was_given_up_may_run_again_before_it_has_ended() -> None:
    responses = TrackedResponses()
    earlier = tracked(responses, "a", 1)
    earlier.__enter__()
    with tracked(responses, "a", 1) as later:
        later.num_tokens[0] = 3
        earlier.__exit__(None, None, None)
        assert responses.find("a", 0) == ("a-0", 3)
    assert responses.find("a", 0) == ("a-0", 3)


def test_choices_may_be_reordered() -> None:
    responses = TrackedResponses()
    with tracked(responses, "a", 4) as sent:
        sent.num_tokens[3] = 9
        sent.order = [3, 1]
    assert responses.find("a", 0) == ("a-3", 9)
    assert responses.find("a", 1) == ("a-1", 0)
    assert responses.find("a", 2) is None


def test_responses_of_other_tenants_are_not_found() -> None:
    responses = TrackedResponses()
    token = tenant.set("one")
    with tracked(responses, "a", 1):
        tenant.set("two")
        assert responses.find("a", 0) is None
    assert responses.find("a", 0) is None
    tenant.set("one")
    assert responses.find("a", 0) is not None
    tenant.reset(token)


def test_oldest_responses_of_the_largest_tenant_are_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open responses stay."""
    monkeypatch.setattr(service, "MAX_RESPONSES", 10)
    responses = TrackedResponses()
    token = tenant.set("one")
    with tracked(responses, "mine", 1):
        pass
    tenant.set("two")
    with tracked(responses, "running", 1):
        for number in range(50):
            with tracked(responses, f"{number}", 1):
                pass
        assert responses.find("running", 0) is not None
    assert [number for number in range(50) if responses.find(f"{number}", 0) is not None] == list(range(42, 50))
    assert responses.find("running", 0) is not None
    tenant.set("one")
    assert responses.find("mine", 0) is not None
    tenant.reset(token)


@pytest.mark.parametrize("num_choices", [1, 2000])
def test_num_bytes_is_the_memory_of_the_records(num_choices: int) -> None:
    responses = TrackedResponses()
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(200):
            with tracked(responses, f"{number:020}", num_choices) as sent:
                sent.order = array("i", range(num_choices)[::-1])
        del sent
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert responses.find(f"{0:020}", 0) is not None
    assert taken <= 1.25 * responses.num_bytes
    if num_choices > 1:
        assert responses.num_bytes <= 1.25 * taken
