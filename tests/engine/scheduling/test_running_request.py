"""Token histories of requests that ended lately."""

import gc
import tracemalloc

import pytest
from roost.engine.prefix_cache.cache import PrefixKey
from roost.engine.scheduling import running_request as recent
from roost.engine.scheduling.running_request import RunningRequest, TokenHistories
from roost.engine.types.request import Request


def ended(name: str, length: int, generated: int = 0, tenant: str = "", salt: str = "salt") -> RunningRequest:
    request = Request(name, (7,) * length, tenant=tenant, cache_salt=salt)
    return RunningRequest(request, 0, token_ids=[9] * generated, key=PrefixKey.of(request.prompt_token_ids, salt))


def kept(histories: TokenHistories, names: str) -> str:
    return "".join(name for name in names if histories.get(name) is not None)


def test_newest_histories_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MAX_BYTES", 50_000)
    monkeypatch.setattr(recent, "MAX_HISTORIES", 3)
    histories = TokenHistories()
    for name in "abcbd":
        histories.keep(ended(name, 1))
    assert kept(histories, "abcd") == "bcd"
    histories.keep(ended("e", 5000, 5000))
    assert kept(histories, "abcde") == "bde"
    histories.keep(ended("f", 5000))
    assert kept(histories, "abcdef") == "f"
    assert histories.num_bytes > 20_000


def test_histories_too_long_to_import_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MAX_TOKENS", 10)
    histories = TokenHistories()
    histories.keep(ended("a", 5, 5))
    histories.keep(ended("b", 5, 6))
    assert kept(histories, "ab") == "a"


def test_eviction_spares_tenants_with_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MAX_BYTES", 100_000)
    monkeypatch.setattr(recent, "MAX_HISTORIES", 20)
    histories = TokenHistories()
    histories.keep(ended("mine", 1000, tenant="one"))
    for number in range(100):
        histories.keep(ended(f"many {number}", 1, tenant="two"))
    for number in range(100):
        histories.keep(ended(f"long {number}", 5000, tenant="two"))
    assert histories.get("mine") is not None
    assert histories.get("long 99") is not None
    assert histories.num_bytes <= 100_000


@pytest.mark.parametrize(
    ("length", "generated", "salt", "tenant"), [(1, 0, 1, 1), (4000, 1, 1, 1), (1, 4000, 1, 1), (9, 9, 9000, 9000)]
)
def test_counted_bytes_match_allocated_memory(length: int, generated: int, salt: int, tenant: int) -> None:
    histories = TokenHistories()
    tracemalloc.start()
    try:
        for number in range(300):
            name = f"{number:04}"
            histories.keep(ended(name, length, generated, name + "t" * tenant, name + "s" * salt))
        del name
        gc.collect(1)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert histories.get("0000") is not None
    assert taken <= 1.25 * histories.num_bytes
    if length + generated + salt > 100:
        assert histories.num_bytes <= 1.25 * taken
