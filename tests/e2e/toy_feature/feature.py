"""Toys: `/toys`, and `roost toy`."""

from typing import Final

from ...feature import Feature
from .collector import ToyCollector
from .open_toys import open_toys
from .routes import router
from .tables import TABLES

FEATURE: Final = Feature(
    "toy", routers=(router,), tables=TABLES, open=open_toys, unused_collectors=lambda: (ToyCollector(lambda: 0),)
)
