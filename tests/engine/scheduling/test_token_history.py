"""Token histories of requests that ended lately."""

import gc
import tracemalloc
from array import array

import pytest
from roost.engine.scheduling import token_history as recent
from roost.engine.scheduling.token_history import RecentTexts, Text


def packed(token_ids: list[int]) -> bytes:
    return array("i", token_ids).tobytes()


def text(length: int, answer: int = 0, tenant: str = "") -> Text:
    return Text(packed([7] * length), packed([9] * answer), "salt", tenant)


def kept(texts: RecentTexts, names: str) -> str:
    return "".join(name for name in names if texts.get(name) is not None)


def test_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MAX_BYTES", 50_000)
    monkeypatch.setattr(recent, "MAX_TEXTS", 3)
    texts = RecentTexts()
    for name in "abcbd":
        texts.keep(name, text(1))
    assert kept(texts, "abcd") == "bcd"
    texts.keep("e", text(5000, 5000))
    assert kept(texts, "abcde") == "bde"
    texts.keep("f", text(5000))
    assert kept(texts, "abcdef") == "f"
    assert texts.num_bytes > 20_000


def test_what_no_server_would_import_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MAX_TOKENS", 10)
    texts = RecentTexts()
    texts.keep("a", text(5, 5))
    texts.keep("b", text(5, 6))
    assert kept(texts, "ab") == "a"


def test_a_tenant_takes_nothing_from_one_that_has_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MAX_BYTES", 100_000)
    monkeypatch.setattr(recent, "MAX_TEXTS", 20)
    texts = RecentTexts()
    texts.keep("mine", text(1000, tenant="one"))
    for number in range(100):
        texts.keep(f"many {number}", text(1, tenant="two"))
    for number in range(100):
        texts.keep(f"long {number}", text(5000, tenant="two"))
    assert texts.get("mine") is not None
    assert texts.get("long 99") is not None
    assert texts.num_bytes <= 100_000


def test_a_history_is_cut_behind_its_prompt() -> None:
    whole = Text(packed([1, 2]), packed([3, 4, 5]))
    assert len(whole) == 5
    for num_generated, expected in ((None, [1, 2, 3, 4, 5]), (2, [1, 2, 3, 4]), (0, [1, 2]), (9, [1, 2, 3, 4, 5])):
        assert list(memoryview(whole.tokens(num_generated)).cast("i")) == expected


@pytest.mark.parametrize(
    ("length", "answer", "salt", "tenant"), [(1, 0, 1, 1), (4000, 1, 1, 1), (1, 4000, 1, 1), (9, 9, 9000, 9000)]
)
def test_what_is_counted_is_what_is_taken(length: int, answer: int, salt: int, tenant: int) -> None:
    texts = RecentTexts()
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(300):
            name = f"{number:04}"
            texts.keep(name, Text(packed([7] * length), packed([9] * answer), name + "s" * salt, name + "t" * tenant))
        del name
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert texts.get("0000") is not None
    assert taken <= 1.25 * texts.num_bytes
    if length + answer + salt > 100:
        assert texts.num_bytes <= 1.25 * taken
