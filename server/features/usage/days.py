"""UTC days as text, which sorts by age."""

from datetime import UTC, datetime, timedelta
from typing import Final

PATTERN: Final = r"^\d{4}-\d{2}-\d{2}$"
"""Pattern of a day."""


def today(days_ago: int = 0) -> str:
    """Returns the current UTC day by the machine's clock, or an earlier one, such as "2026-11-29"."""
    return (datetime.now(UTC) - timedelta(days=days_ago)).date().isoformat()
