"""Settings of toys."""

from typing import Annotated, Final

from ...settings import Settings
from ...settings.fields import Option


class ToySettings(Settings):
    """Settings of a server with toys."""

    toy_greeting: Annotated[str, Option("Toys", "TEXT")] = "hello"
    """Greeting of the toys."""


SETTINGS: Final = ToySettings
