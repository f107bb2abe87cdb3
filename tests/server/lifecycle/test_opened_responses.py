"""The store of responses that the settings name."""

import re
from pathlib import Path

import pytest
from roost.server.lifecycle.response_store import open_responses
from roost.server.settings import load_settings
from roost.server.store import StoreUnavailableError


def test_a_store_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/missing/responses.db"
    with pytest.raises(StoreUnavailableError, match=rf"\A--store sqlite://{re.escape(str(tmp_path))}/missing/.*: "):
        open_responses(load_settings({"store": store}))
