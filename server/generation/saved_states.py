"""Saves states of requests under ids, and converts them to files and back."""

from dataclasses import asdict, replace
from typing import Any
from uuid import uuid4

from ...engine import MAX_TOKENS, SavedState, UnknownRequestError
from ..errors import kinds
from ..errors.request_errors import ApiError, bad_value
from ..schemas.body import MAX_MESSAGES
from ..tenants import tenant
from .service import Service
from .state_store import Prefix, StoredState


async def save_state(service: Service, request_id: str, index: int) -> StoredState:
    """Saves the state of a choice that is running or ended recently, up to the tokens whose text was sent whole.

    Args:
      request_id: Id of the response.
      index: Index of the choice.

    Raises:
      ApiError: The choice does not exist, or its state has no room.
    """
    message = f"no request with the id {request_id!r} and a choice {index} is running or ended recently"
    unknown = ApiError(kinds.NO_SUCH_OBJECT, message, param="request_id")
    async with service.states.saves.hold():
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


async def describe(service: Service, stored: StoredState) -> dict[str, Any]:
    """Returns the object that the API shows, with the messages of a chat."""
    messages = await service.workers.run(lambda: service.model.chat_format.decode(stored.state.token_ids, MAX_MESSAGES))
    found = {} if messages is None else {"messages": [asdict(message) for message in messages]}
    return stored.described() | found


async def export_state(service: Service, stored: StoredState) -> bytes:
    """Returns a state as a file, signed if the service has a key."""
    return await service.workers.run(lambda: service.engine.state_format.export(stored.state, service.state_key))


async def import_state(service: Service, data: bytes, cache_salt: str = "") -> StoredState:
    """Saves the state in a file. Prompts of the tenant that begin with its tokens restore it.

    A state that is signed with the service's key also enters the prefix cache that the tenant's requests use. Snapshots
    after any other state are kept separate, under a salt that no other request shares.

    Args:
      cache_salt: `cache_salt` of the requests that may restore the state.

    Raises:
      StateFileError: The file is broken, belongs to another model, or is not signed with the service's key.
      ApiError: The state has no room.
    """

    def load() -> tuple[SavedState, Prefix | None]:
        state = service.engine.state_format.load(data, service.state_key)
        return state, Prefix.of(state, cache_salt)

    state, prefix = await service.workers.run(load)
    salt = f"import-{uuid4().hex}" if state.is_imported else service.salt(cache_salt)
    stored = _keep(service, replace(state, salt=salt), prefix)
    if not state.is_imported:
        async with service.states.saves.hold():
            await service.engine.insert(stored.state)
    return stored


def _keep(service: Service, state: SavedState, prefix: Prefix | None = None) -> StoredState:
    """Stores a state. All states together take at most as much memory as the prefix cache may take."""
    return service.states.keep(state, tenant.get(), service.engine.stats.cache.budget, prefix)
