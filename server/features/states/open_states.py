"""Memory for transfers of state files, while a server runs."""

from typing import Annotated

from fastapi import Depends

from ...feature import OpenFeature, Opening, opened
from .state_files import StateFiles


class OpenStates(OpenFeature):
    """Transfers of state files. The service keeps the states themselves.

    Args:
      files: Memory of the files.
    """

    def __init__(self, files: StateFiles) -> None:
        self.files = files


def open_states(opening: Opening) -> OpenStates:
    """Returns the feature of a server."""
    return OpenStates(StateFiles(opening.num_tenants))


States = Annotated[OpenStates, Depends(opened(OpenStates))]
"""Open feature of routes."""
