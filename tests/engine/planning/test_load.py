"""Loads and targets as they are written."""

import pytest
from roost.engine import ConfigError
from roost.engine.planning.replicas import ExpectedLoad, Targets


@pytest.mark.parametrize("text", ["512+128@40/s", "1+1@0.5/s"])
def test_a_load_is_shown_as_it_is_written(text: str) -> None:
    assert str(ExpectedLoad.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "512",
        "512+128",
        "512+128@40",
        "0+1@1/s",
        "1+0@1/s",
        "1+1@0/s",
        "1+1@-1/s",
        "1+1@1/s ",
        "²+1@1/s",
        "1.5+1@1/s",
    ],
)
def test_a_wrong_load_is_named_with_the_form(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ExpectedLoad.parse(text)
    assert str(raised.value) == f"load must be IN+OUT@RATE/s, such as 512+128@40/s, not {text!r}"


def test_times_have_units() -> None:
    assert Targets.parse("1.5s", "60ms") == Targets(1.5, 0.06)


@pytest.mark.parametrize("text", ["", "1", "0s", "-1s", "1m", "nan", "1 s", "1e3s"])
def test_a_wrong_time_is_named_with_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^ttft-p99 must be a time such as 1s or 60ms, not "):
        Targets.parse(text, "60ms")
    with pytest.raises(ConfigError, match=r"^itl-p99 must be a time such as 1s or 60ms, not "):
        Targets.parse("1s", text)
