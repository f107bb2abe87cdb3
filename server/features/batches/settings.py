"""Settings of files and batches."""

from typing import Annotated, Final

from ...settings import Settings
from ...settings.fields import Group, Option, PositiveFloat


class BatchesSettings(Settings):
    """Settings of a server with files and batches."""

    store_gib: Annotated[PositiveFloat, Option(Group.STORE, "GIB")] = 16.0
    """Maximum GiB of the files of one API key, including the output of its batches; of all files on a server without
    keys.
    """


SETTINGS: Final = BatchesSettings
