"""Time limits of transactions with the store, which a busy machine may reach."""

from contextlib import suppress

import pytest

_LIMITS = (
    "features.responses.response_store._LAST_S",
    "features.usage.feature.REPLY_S",
    "storage.objects.REPLY_S",
)


@pytest.fixture(autouse=True)
def patient_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives transactions a minute. Tests of a limit set their own."""
    for name in _LIMITS:
        with suppress(ImportError):  # a feature may have been deleted
            monkeypatch.setattr(f"roost.server.{name}", 60.0)
