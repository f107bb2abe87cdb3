"""Saved states of unpacked token ids."""

from collections.abc import Sequence

from roost.engine.types.host_memory import id_bytes
from roost.engine.types.snapshot import SavedState, Snapshot


def saved_state(
    token_ids: Sequence[int],
    snapshot: Snapshot | None = None,
    salt: str = "",
    tenant: str = "",
    is_imported: bool = False,
) -> SavedState:
    return SavedState(id_bytes(token_ids), snapshot, salt, tenant, is_imported)
