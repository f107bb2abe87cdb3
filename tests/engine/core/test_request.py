"""Requests are valid once built."""

import pytest
from roost.engine.core.request import Request


def test_a_prompt_holds_at_least_one_token() -> None:
    with pytest.raises(ValueError, match="prompt"):
        Request("r", ())
