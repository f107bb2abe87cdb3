"""Cost of stop strings per request and per token, whatever their number and length."""

import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from roost.server.generation.admission import Admissions, admission
from roost.server.generation.requests import completion, stop_strings
from roost.server.generation.service import Service
from roost.server.schemas.generation_fields import MAX_TOTAL_STOP_CHARACTERS, CompletionFields
from roost.server.text.detokenizer import Detokenizer, StopStrings
from roost.server.text.tokenizer import Tokenizer

SHARED_PREFIX = ["a" * 250 + f"{number:06d}" for number in range(64)]
OWN_PREFIX = [f"{number:06d}" + "a" * 250 for number in range(64)]
SUFFIXES = ["a" * length + "b" for length in range(1, 65)]


def num_calls(work: Callable[[], object]) -> int:
    """Returns the number of Python calls of the work: a cost that does not depend on the machine."""
    count = 0

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("strings", [SHARED_PREFIX, OWN_PREFIX, SUFFIXES], ids=["prefix", "own", "suffix"])
@pytest.mark.parametrize("text", ["a" * 500, "xyz" * 150, ("a" * 240 + "0") * 2], ids=["held", "other", "nearly"])
def test_cost_of_a_token_does_not_depend_on_the_number_of_strings(
    tokenizer: Tokenizer, strings: Sequence[str], text: str
) -> None:
    ids = tokenizer.encode(text)

    def cost(stop: Sequence[str]) -> int:
        detokenizer = Detokenizer(tokenizer, stop)
        return num_calls(lambda: [detokenizer.push([token_id]) for token_id in ids])

    assert cost(strings) < 3 * cost(["b" * 16])


async def test_choices_of_a_request_share_one_automaton(service: Service) -> None:
    body = CompletionFields(prompt="a", n=128, stop=[*SHARED_PREFIX[1:], "x" * 256])
    spec = await completion(body, service)
    tracemalloc.start()
    try:
        detokenizers = [Detokenizer(service.model.tokenizer, spec.stop) for _ in spec.params]
        num_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_bytes < 2048 * len(detokenizers)


def test_tables_take_24_bytes_per_character() -> None:
    tracemalloc.start()
    try:
        stop = StopStrings(OWN_PREFIX)
        num_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_bytes < 1.25 * 24 * sum(map(len, stop)) + 32 * 2**10


class Recorded(list[str]):
    """Records the threads that read it."""

    def __init__(self, strings: Sequence[str]) -> None:
        super().__init__(strings)
        self.threads: set[int] = set()

    def __iter__(self) -> Iterator[str]:
        self.threads.add(threading.get_ident())
        return super().__iter__()


async def test_long_stop_strings_are_built_off_the_event_loop() -> None:
    few, many = Recorded(["END", "\n\n"]), Recorded(OWN_PREFIX)
    token = admission.set(Admissions().unbounded())
    for strings in (few, many):
        assert list(await stop_strings(strings)) == list(strings)
    admission.reset(token)
    assert few.threads == {threading.get_ident()}
    assert len(many.threads) == 2


@pytest.mark.parametrize(
    ("path", "param", "body"),
    [
        ("/v1/completions", "stop", {"prompt": "a"}),
        ("/v1/chat/completions", "stop", {"messages": [{"role": "user", "content": "a"}]}),
        ("/generate", "stop", {"token_ids": [4]}),
        ("/v1/messages", "stop_sequences", {"messages": [{"role": "user", "content": "a"}]}),
    ],
)
async def test_total_length_is_bounded(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, param: str, body: dict[str, Any]
) -> None:
    strings = [f"{number:02d}" + "a" * 254 for number in range(64)]
    assert sum(map(len, strings)) == MAX_TOTAL_STOP_CHARACTERS
    accepted = await client.post(path, json={**body, "max_tokens": 2, param: strings})
    assert accepted.status_code == 200, accepted.text
    num_requests = len(engine.requests)
    refused = await client.post(path, json={**body, "max_tokens": 2, param: [*strings[1:], "b" * 257]})
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert message.startswith(f"{param}: stop strings may have 16384 characters together, got 16385")
    assert len(engine.requests) == num_requests
