"""Usage of each tenant and day: `/v1/usage`."""

from typing import Final

from ...feature import Feature
from .open_usage import open_usage
from .routes import router
from .usage_table import TABLES

FEATURE: Final = Feature("usage", admin_routers=(router,), tables=TABLES, open=open_usage)
