"""Saves states of requests under ids, and turns them into files and back."""

from dataclasses import replace
from uuid import uuid4

from ...engine import MAX_TOKENS, SavedState, UnknownRequestError
from ..errors import kinds
from ..errors.request_errors import ApiError, bad_value
from ..tenancy.tenant import tenant
from .service import Service
from .state_store import StoredState


async def save_state(service: Service, request_id: str, index: int) -> StoredState:
    """Saves the state of a choice that runs or ended lately, up to the tokens whose text was sent whole.

    Args:
      request_id: Id of the response.
      index: Index of the choice.

    Raises:
      ApiError: There is no such choice, or no room for its state.
    """
    message = f"no request with the id {request_id!r} and a choice {index} runs, or has ended lately"
    unknown = ApiError(kinds.NO_SUCH_OBJECT, message, param="request_id")
    async with service.saves.hold():
        sent = service.tracked.find(request_id, index)
        if sent is None:
            raise unknown
        try:
            state = await service.engine.save(sent.request_id, sent.num_tokens)
        except UnknownRequestError:
            raise unknown from None
    if state.tenant != tenant.get():
        raise unknown
    if state.num_tokens > MAX_TOKENS:
        raise bad_value("request_id", f"request_id: a state may have {MAX_TOKENS} tokens, not {state.num_tokens}")
    return _keep(service, state)


async def export_state(service: Service, stored: StoredState) -> bytes:
    """Returns a state as a file, signed if the service has a key."""
    return await service.workers.run(lambda: service.engine.state_format.export(stored.state, service.state_key))


async def import_state(service: Service, data: bytes) -> StoredState:
    """Saves the state in a file.

    Raises:
      StateFileError: The file is broken, of another model, or not signed with the service's key.
      ApiError: There is no room for the state.
    """
    state = await service.workers.run(lambda: service.engine.state_format.load(data, service.state_key))
    return _keep(service, replace(state, salt=f"import-{uuid4().hex}"))  # a secret, so that no other request shares it


def _keep(service: Service, state: SavedState) -> StoredState:
    """Stores a state. All states together take at most as much memory as the prefix cache may take."""
    return service.states.keep(state, tenant.get(), service.engine.stats.cache.budget)
