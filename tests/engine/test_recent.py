"""Texts of requests that have ended lately."""

import pytest
from roost.engine import recent
from roost.engine.recent import RecentTexts, Text


def test_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MAX_TOKENS", 10)
    monkeypatch.setattr(recent, "MAX_TEXTS", 3)
    texts = RecentTexts()
    for name, length in [("a", 4), ("b", 4), ("b", 2), ("c", 4), ("d", 1), ("e", 6)]:
        texts.keep(name, Text((1,) * length, ""))
    kept = {name: texts.get(name) for name in "abcde"}
    assert {name: len(text.token_ids) for name, text in kept.items() if text} == {"d": 1, "e": 6}
    texts.keep("f", Text((1,) * 11, ""))
    assert texts.get("f") is None, "too long by itself"
