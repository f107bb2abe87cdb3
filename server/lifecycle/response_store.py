"""Opens the store of responses that the settings name."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from ...engine import AsyncEngine
from ..generation.batches import BatchStore
from ..generation.checkpoint_files import CheckpointFiles
from ..generation.checkpointer import Checkpointer, CheckpointSettings
from ..generation.durable_responses import DurableResponses
from ..generation.memory_responses import MemoryResponses
from ..generation.response_store import ResponseStore
from ..observability.request_metrics import Observer
from ..settings import Settings
from ..store import Database, StoreAddress, StoreStats, StoreUnavailableError, schema
from ..store.dialects import dialect_of

_DAY_S = 86400.0


def store_address(settings: Settings) -> StoreAddress:
    """Returns the address of the store."""
    return StoreAddress.parse(settings.store.get_secret_value())


def open_responses(settings: Settings) -> ResponseStore:
    """Returns the store, whose tables exist and are of this version or a later one.

    Raises:
      StoreUnavailableError: The database cannot be used.
    """
    address = store_address(settings)
    if address.kind == "memory":
        return MemoryResponses()
    dialect = dialect_of(address)
    database = Database(dialect)
    try:
        database.run_now(partial(schema.upgrade, dialect=dialect), writes=True)
    except StoreUnavailableError as error:
        raise StoreUnavailableError(f"--store {address}: {error}") from None
    stats = StoreStats()
    return DurableResponses(
        database, settings.store_days * _DAY_S, settings.adopt_after, _checkpoint_files(settings, stats), stats
    )


def _checkpoint_files(settings: Settings, stats: StoreStats) -> CheckpointFiles | None:
    if settings.state_store is None:
        return None
    key = settings.state_key
    return CheckpointFiles(settings.state_store, None if key is None else key.get_secret_value().encode(), stats)


def make_checkpointer(
    settings: Settings, engine: AsyncEngine, responses: ResponseStore, observers: Sequence[Observer] = ()
) -> Checkpointer | None:
    """Returns what takes checkpoints; None if there is no folder for them."""
    if not isinstance(responses, DurableResponses) or responses.files is None:
        return None
    rate = settings.checkpoint_mib_per_s * 2**20
    limits = CheckpointSettings(settings.checkpoint_seconds, rate, settings.evacuate_seconds)
    return Checkpointer(engine, responses, responses.files, limits, observers)


def evacuation(responses: ResponseStore, checkpointer: Checkpointer | None) -> Callable[[], Awaitable[None]] | None:
    """Returns what saves unfinished work for other replicas before the engine stops; None without any."""
    if checkpointer is not None:
        return checkpointer.evacuate
    return responses.hand_over_streams if isinstance(responses, DurableResponses) else None


def open_batches(settings: Settings) -> BatchStore | None:
    """Returns the store of files and batches, with connections of its own; None without a database.

    Call it after `open_responses`, which makes the tables.
    """
    address = store_address(settings)
    if address.kind == "memory":
        return None
    return BatchStore(Database(dialect_of(address)), settings.store_days * _DAY_S)


async def close_stores(responses: ResponseStore, batches: BatchStore | None) -> None:
    """Closes connections to a database, and leaves its running responses to other replicas."""
    if isinstance(responses, DurableResponses):
        await responses.close()
    if batches is not None:
        batches.close()


def is_store_stuck(responses: ResponseStore, batches: BatchStore | None) -> bool:
    """Returns whether a database's thread would delay the end of the process."""
    is_stuck = isinstance(responses, DurableResponses) and responses.is_stuck
    return is_stuck or (batches is not None and batches.is_stuck)
