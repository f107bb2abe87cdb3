"""A kind of work on each database."""

from collections.abc import Iterator

import pytest
from work_tables import Tables, work_tables


@pytest.fixture
def tables(address: str) -> Iterator[Tables]:
    with work_tables(address) as tables:
        yield tables
