"""`roost serve`: one process, from its settings to its exit status."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Final

import uvicorn

from ..engine import AsyncEngine, ConfigError, RoostError, open_model
from .app import create_app
from .fields import FieldCheck
from .grammar import GrammarCompiler
from .loading import LoadProgress, engine_config, is_loading, leave_while_loading, make_engine, summary
from .logging import set_up_logging
from .metrics import Metrics
from .prompts import PromptEncoder
from .served_model import open_served_model
from .service import Service
from .settings import Settings

GRACE_S: Final = 5.0
"""How long requests may go on once the process has been asked to end; then their streams end with an error."""

_WATCH_S: Final = 0.1

_KEEP_ALIVE_S: Final = 75
"""For connections without a request: longer than proxies keep theirs, so that it is they who close."""

_logger = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Serves until a signal comes or the engine dies; gives the exit status.

    Raises:
      RoostError: a setting is wrong, the model cannot be loaded, or the port is taken.
    """
    set_up_logging()
    config = engine_config(settings)
    source = open_model(settings.model)
    model = open_served_model(source, config, settings.served_model_name, settings.max_tokens_limit)
    listener = _listen(settings.host, settings.port)
    progress = LoadProgress()
    engine = make_engine(source, config, progress)
    service = Service(
        engine=engine,
        model=model,
        metrics=Metrics(lambda: engine.stats),
        prompts=PromptEncoder(model),
        grammars=GrammarCompiler(model.tokenizer, model.end_token_ids),
        max_choices=config.max_queue,
        check_fields=FieldCheck(strict=settings.strict),
    )

    def announce() -> None:
        for line in summary(source, config, engine.stats.slots, model.id, _url(settings.host, listener)):
            print(line, file=sys.stderr, flush=True)

    server = _Server(_uvicorn_config(service, settings))
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        failure = runner.run(_run(engine, server, listener, announce))
        if is_loading(engine):
            leave_while_loading(progress, 0)
    if isinstance(failure, RoostError):
        raise failure
    if failure is not None:
        _logger.critical("the engine died", exc_info=failure)
    return 0 if failure is None else 1


class _Server(uvicorn.Server):
    """Ends with a status after a signal, where uvicorn's own would let the signal kill the process."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def _uvicorn_config(service: Service, settings: Settings) -> uvicorn.Config:
    key = settings.api_key
    return uvicorn.Config(
        create_app(service, api_key=None if key is None else key.get_secret_value()),
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(2 * GRACE_S),  # for what even an error does not end
    )


async def _run(
    engine: AsyncEngine, server: uvicorn.Server, listener: socket.socket, announce: Callable[[], None]
) -> BaseException | None:
    """Serves, from before the engine is ready, until it is told to end; gives the engine's failure, if any."""
    engine.start()
    watch = asyncio.create_task(_watch(engine, server, announce))
    await server.serve(sockets=[listener])
    if watch.done():
        return watch.result()
    watch.cancel()
    if engine.is_ready:
        await engine.stop()
    return None


async def _watch(engine: AsyncEngine, server: uvicorn.Server, announce: Callable[[], None]) -> BaseException | None:
    """Ends the server when the engine fails, and the engine some time after the server was told to end."""
    try:
        await engine.wait_ready()
    except Exception as error:  # the load may raise anything; it becomes the reason why the process ends
        server.should_exit = True
        return error
    announce()
    while engine.error is None and not server.should_exit:  # noqa: ASYNC110 (nobody tells when they change)
        await asyncio.sleep(_WATCH_S)
    if engine.error is not None:
        server.should_exit = True
        return engine.error
    await asyncio.sleep(GRACE_S)
    await engine.stop()
    return None


def _listen(host: str, port: int) -> socket.socket:
    """Takes the port before anything slow is done.

    Raises:
      ConfigError: the address is taken, or none of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address, family=family, backlog=2048)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # which repeats the address
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}") from None


def _url(host: str, listener: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"
