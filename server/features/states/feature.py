"""Saved states over HTTP: `/v1/states`."""

from typing import Final

from ...feature import Feature
from .open_states import open_states
from .routes import IMPORT_PATH, router

FEATURE: Final = Feature("states", routers=(router,), unlimited_paths=frozenset({IMPORT_PATH}), open=open_states)
