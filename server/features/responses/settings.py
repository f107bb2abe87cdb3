"""Settings of stored responses."""

from pathlib import Path
from typing import Annotated, Final

from pydantic import model_validator

from ...settings import Settings
from ...settings.fields import LOCAL_FOLDER, Group, NonNegativeFloat, Option, PositiveFloat


class ResponsesSettings(Settings):
    """Settings of a server that stores responses."""

    adopt_after: Annotated[NonNegativeFloat, Option(Group.STORE, "SECONDS")] = 60.0
    """Seconds for which an interrupted response waits for a replica that continues it bit for bit, before one with
    other hardware or another version does so inexactly.
    """
    state_store: Annotated[Path | None, LOCAL_FOLDER, Option(Group.STORE, "DIR")] = None
    """Folder for checkpoints of running background responses, from which another replica continues them. All replicas
    share it; it may be a mounted bucket.
    """
    checkpoint_seconds: Annotated[PositiveFloat, Option(Group.STORE, "SECONDS")] = 10.0
    """Seconds between two checkpoints of a response."""
    checkpoint_mib_per_s: Annotated[PositiveFloat, Option(Group.STORE, "MIB")] = 100.0
    """Maximum MiB per second of checkpoints; beyond that, they are delayed."""
    evacuate_seconds: Annotated[NonNegativeFloat, Option(Group.SHUTDOWN, "SECONDS")] = 5.0
    """Seconds after the drain in which background responses are saved to --state-store for other replicas."""

    @model_validator(mode="after")
    def _check_state_store(self) -> "ResponsesSettings":
        if self.state_store is not None and self.store.get_secret_value() == "memory:":
            raise ValueError("state_store needs a store that replicas share, such as postgresql://…")
        return self


SETTINGS: Final = ResponsesSettings
