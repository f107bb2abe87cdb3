"""Requests are valid once built."""

import pytest
from roost.engine.types.request import Request


def test_prompt_must_hold_a_token() -> None:
    with pytest.raises(ValueError, match="prompt"):
        Request("r", ())
