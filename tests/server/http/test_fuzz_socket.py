"""Six hundred of the bad requests of `tests/robust/fuzz.py`, over a socket; others are sent to a server process."""

import random
from collections.abc import Mapping

import fuzz
import pytest
from fake_engine import FakeEngine
from fake_server import VOCAB_SIZE, live, make_service, served_model
from roost.server.text.tokenizer import Tokenizer


async def test_nothing_gets_the_better_of_it(tokenizer: Tokenizer) -> None:
    service = make_service(FakeEngine(VOCAB_SIZE), served_model(tokenizer, max_tokens_limit=8))
    async with live(service) as client:
        found = await fuzz.run(str(client.base_url), 600, seed=1, num_clients=4)
    assert not found.problems, "\n".join(found.problems)
    assert min(found.kinds[kind] for kind in ("values", "text", "requests", "bytes")) > 30
    assert all(found.statuses[status] for status in ("200", "400", "404", "405"))


def answer(status: int, body: bytes = b"") -> fuzz.Answer:
    return fuzz.Answer(status, {"x-request-id": "r"}, body, False)


OPENAI = b'{"error": {"message": "m", "type": "t", "param": null, "code": null}}'
ANTHROPIC = b'{"type": "error", "error": {"type": "t", "message": "m"}, "request_id": "r"}'


@pytest.mark.parametrize(
    ("status", "path", "body", "fine"),
    [
        (200, "/x", b"", True),
        (400, "/x", OPENAI, True),
        (400, "/v1/messages", ANTHROPIC, True),
        (400, "/x", ANTHROPIC, False),
        (400, "/x", b"no", False),
        (400, "/x", b"[]", False),
        (400, "/x", OPENAI.replace(b'"m"', b'""'), False),
        (400, "/x", OPENAI.replace(b'"m"', b'"a\\nb"'), False),
        (500, "/x", OPENAI, False),
        (503, "/x", OPENAI, False),
    ],
)
def test_what_is_wrong_is_seen(status: int, path: str, body: bytes, fine: bool) -> None:
    made = fuzz.Attempt("values", b"", path, whole=True)
    assert (fuzz.judge(made, answer(status, body)) is None) is fine


def test_a_missing_answer_is_wrong_only_for_a_whole_request() -> None:
    assert fuzz.judge(fuzz.Attempt("values", b"", "/", whole=True), None)
    assert not fuzz.judge(fuzz.Attempt("bytes", b"", "/", whole=False), None)


def test_an_answer_without_an_id_is_wrong() -> None:
    bare: Mapping[str, str] = {}
    assert fuzz.judge(fuzz.Attempt("values", b"", "/", whole=True), fuzz.Answer(200, bare, b"", False))


def test_the_same_seed_makes_the_same_requests() -> None:
    def some(seed: int) -> list[object]:
        rng = random.Random(seed)
        return [fuzz.attempt(rng) for _ in range(50)]

    assert some(3) == some(3)
    assert some(3) != some(4)
