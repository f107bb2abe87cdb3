"""Saved states: kept in memory under an id, and stored as files."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...engine import RoostError, StateFileError
from ..generation.saved_states import export_state, import_state, save_state
from ..generation.service import Service
from ..generation.state_store import StoredState
from ..tenancy.tenant import tenant
from .errors import python_errors
from .outputs import RequestOutput


@dataclass(frozen=True, slots=True)
class State:
    """A saved state, which any number of requests may continue. It stays in memory until it is deleted.

    Attributes:
      id: Id of the state.
      num_tokens: Number of tokens of its history.
      num_bytes: Memory that it takes.
    """

    id: str
    num_tokens: int
    num_bytes: int


async def save(service: Service, request: RequestOutput | str, index: int) -> State:
    """Saves the state of a choice; see `LLM.save_state`."""
    request_id = request if isinstance(request, str) else request.request_id
    with python_errors():
        return _state(await save_state(service, request_id, index))


async def export(service: Service, state: State, path: Path) -> None:
    """Writes a state into a file; see `LLM.export_state`."""
    with python_errors(), _file_errors(path, "written"):
        data = await export_state(service, service.states.get(state.id, tenant.get()))
        await service.workers.run(partial(path.write_bytes, data))


async def load(service: Service, path: Path) -> State:
    """Saves the state in a file; see `LLM.load_state`."""
    with python_errors(), _file_errors(path, "read"):
        return _state(await import_state(service, await service.workers.run(path.read_bytes)))


def delete(service: Service, state: State) -> None:
    """Deletes a state; see `LLM.delete_state`."""
    with python_errors():
        service.states.delete(state.id, tenant.get())


def _state(stored: StoredState) -> State:
    return State(stored.id, stored.state.num_tokens, stored.num_bytes)


@contextmanager
def _file_errors(path: Path, done: str) -> Iterator[None]:
    """Adds the name of the file to errors about it."""
    try:
        yield
    except StateFileError as error:
        raise StateFileError(f"{path} {error}") from None
    except OSError as error:
        raise RoostError(f"{path}: cannot be {done} ({error.strerror})") from None
