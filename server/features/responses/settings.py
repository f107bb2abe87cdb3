"""Settings of stored responses."""

from pathlib import Path
from typing import Annotated, Final

from pydantic import model_validator

from ...settings import Settings
from ...settings.fields import LOCAL_FOLDER, Group, NonNegativeFloat, Option, PositiveFloat


class ResponsesSettings(Settings):
    """Settings of a server that stores responses."""

    adopt_after: Annotated[
        NonNegativeFloat,
        Option(
            Group.STORE,
            "Seconds for which an interrupted response waits for a replica that continues it bit for bit, before one "
            "with other hardware or another version does so inexactly.",
            "SECONDS",
        ),
    ] = 60.0
    state_store: Annotated[
        Path | None,
        LOCAL_FOLDER,
        Option(
            Group.STORE,
            "Folder for checkpoints of running background responses, from which another replica continues them. All "
            "replicas share it; it may be a mounted bucket.",
            "DIR",
        ),
    ] = None
    checkpoint_seconds: Annotated[
        PositiveFloat, Option(Group.STORE, "Seconds between two checkpoints of a response.", "SECONDS")
    ] = 10.0
    checkpoint_mib_per_s: Annotated[
        PositiveFloat,
        Option(Group.STORE, "Maximum MiB per second of checkpoints; beyond that, they are delayed.", "MIB"),
    ] = 100.0
    evacuate_seconds: Annotated[
        NonNegativeFloat,
        Option(
            Group.SHUTDOWN,
            "Seconds after the drain in which background responses are saved to --state-store for other replicas.",
            "SECONDS",
        ),
    ] = 5.0

    @model_validator(mode="after")
    def _check_state_store(self) -> "ResponsesSettings":
        if self.state_store is not None and self.store.get_secret_value() == "memory:":
            raise ValueError("state_store needs a store that replicas share, such as postgresql://…")
        return self


SETTINGS: Final = ResponsesSettings
