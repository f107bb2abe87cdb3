"""`roost serve`: one process, from its settings to its exit status."""

import asyncio
import contextlib
import gc
import logging
import math
import select
import signal
import socket
import sys
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Final, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ...engine import (
    AsyncEngine,
    ConfigError,
    EngineConfig,
    EngineDeadError,
    ModelSource,
    RoostError,
    device_facts,
    follow,
)
from ..api.common.unknown_fields import FieldCheck
from ..app import create_app
from ..generation.prompts import PromptEncoder
from ..generation.service import Service
from ..generation.state_files import StateFiles
from ..generation.state_store import StateStore
from ..lifecycle.engine_loading import (
    LoadProgress,
    engine_config,
    greeting,
    is_loading,
    leave_while_loading,
    make_engine,
    summary,
)
from ..lifecycle.lifecycle import LAST_STEP_S, Life, Patience
from ..lifecycle.signals import Signals, leave_now
from ..middleware.auth import load_access
from ..model_hub import find_model
from ..observability.logging import is_json, log_what_python_prints, say, set_up_logging
from ..observability.metrics import Metrics
from ..observability.observers import open_observation
from ..settings import Settings, chosen_platforms
from ..tenancy.workers import Workers
from ..text.grammar import GrammarCompiler
from ..text.served_model import open_served_model
from ..transport.limited_connection import LimitedConnection
from .accelerators import unused_accelerator

_KEEP_ALIVE_S: Final = 75
"""For connections without a request: longer than proxies keep theirs, so that it is they who close."""

_LAST_CONNECTIONS_S: Final = 0.5
"""How long clients that connect at the very end have to send a request."""

_WATCH_S: Final = 0.01

_SWITCH_S: Final = 0.0005
"""Seconds that a thread keeps the interpreter while others want it: a tenth of Python's own, as the event loop and the
engine wait so long for each of the worker threads."""

_logger = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Serves until a signal comes or the engine dies; gives the exit status.

    Raises:
      RoostError: a setting is wrong, the model cannot be loaded, or the port is taken.
    """
    sys.setswitchinterval(_SWITCH_S)
    signals = Signals()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signals)
    _set_up_logging(settings)
    config = engine_config(settings)
    source = find_model(settings.model)
    if config.hosts is not None and not config.hosts.is_leader:
        return _follow(source, config)
    model = open_served_model(source, config, settings.served_model_name, settings.max_tokens_limit)
    listener = _listen(settings.host, settings.port)
    admin_listener = None if settings.admin_port is None else _listen(settings.host, settings.admin_port)
    listeners = [each for each in (listener, admin_listener) if each is not None]
    access = load_access(settings, None if admin_listener is None else admin_listener.getsockname()[1])
    config = replace(config, tenants=max(len(access.keys.owners), 1))
    observation = open_observation(settings, model.id)
    progress = LoadProgress(config.compile_cache)
    engine = make_engine(source, config, progress)
    metrics = Metrics(
        lambda: engine.stats,
        tenants=access.keys.owners,
        vllm_model=model.id if settings.metrics_compat == "vllm" else None,
        observers=observation.observers,
    )
    workers = Workers(tenants=config.tenants)
    service = Service(
        engine=engine,
        model=model,
        metrics=metrics,
        prompts=PromptEncoder(model, workers),
        workers=workers,
        grammars=GrammarCompiler(model.tokenizer, model.end_token_ids, tenants=config.tenants),
        max_choices=config.max_queue,
        request_timeout_s=math.inf if settings.request_timeout is None else settings.request_timeout,
        max_prompt_tokens=settings.max_prompt_tokens,
        check_fields=FieldCheck(strict=settings.strict),
        salt_by_key=settings.cache_salt_by_key,
        state_key=config.state_key,
        states=StateStore(config.tenants),
        files=StateFiles(config.tenants),
    )

    def announce() -> None:
        gc.freeze()  # a full collection would go through all that libraries and the model have made: 100 ms and more
        _announce(source, config, engine.stats.slots, model.id, _url(settings, listener))

    app = create_app(service, access, max_body_bytes=settings.max_body_bytes, trace=observation.trace)
    server = _Server(_uvicorn_config(app, settings), signals)
    life = Life(service, signals, Patience(settings.drain_lag, settings.drain_timeout, settings.step_timeout), announce)
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        failure = runner.run(run_beside(life, server, listeners))
        if is_loading(engine):
            leave_while_loading(progress, 0)
    observation.close()
    return _status(failure, engine)


def _set_up_logging(settings: Settings) -> None:
    level, as_json = logging.getLevelNamesMapping()[settings.log_level.upper()], settings.log_format == "json"
    set_up_logging(level, as_json=as_json, access_log=settings.access_log)
    if as_json:
        log_what_python_prints()
    for warning in settings.warnings:
        _logger.warning("%s", warning)


def _announce(source: ModelSource, config: EngineConfig, slots: int, model_id: str, url: str) -> None:
    """Says where the server is and what it serves; loudly where it runs on the wrong device."""
    device = device_facts()
    lines = summary(source, config, slots, model_id, url, device)
    if is_json():
        say(greeting(url), fields=dict(line.split(maxsplit=1) for line in lines))
    else:
        say("\n".join(["", greeting(url), "", *lines, ""]))
    if warning := unused_accelerator(device.platform, chosen_platforms()):
        _logger.warning("%s", warning)


def _follow(source: ModelSource, config: EngineConfig) -> int:
    """Serves as one of the leader's hosts; it is the leader who ends this, also after a signal."""
    try:
        follow(source, config, partial(leave_now, 1), LoadProgress(config.compile_cache))
    except EngineDeadError as error:
        _logger.critical("%s", error)
        leave_now(1)  # devices may wait for those of the leader
    return 0


def _status(failure: BaseException | None, engine: AsyncEngine) -> int:
    """The exit status, if the process can end as it should.

    Raises:
      RoostError: the failure, where a user can put it right.
    """
    if isinstance(failure, RoostError) and not isinstance(failure, EngineDeadError):
        raise failure
    if failure is not None:
        _logger.critical("the engine died: %s", failure, exc_info=None if isinstance(failure, RoostError) else failure)
    status = 0 if failure is None else 1
    if engine.is_stuck:
        leave_now(status)
    return status


class _Server(uvicorn.Server):
    """Leaves to us what happens after a signal, and answers whoever has connected before the end."""

    def __init__(self, config: uvicorn.Config, signals: Signals) -> None:
        super().__init__(config)
        self._signals = signals

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Connections that the system has taken but nobody has accepted yet would be reset without an answer."""
        before = set(self.server_state.connections)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_CONNECTIONS_S):
                await accept_rest(sockets or [])
                for listener in self.servers:
                    listener.close()
                while self._have_not_asked(before):  # noqa: ASYNC110 - connections tell nobody
                    await asyncio.sleep(_WATCH_S)
        await super().shutdown(sockets)

    def _have_not_asked(self, before: AbstractSet[object]) -> bool:
        """Whether there is a connection that is not one of these, and on which no request has come yet."""
        new = self.server_state.connections - before
        return any(isinstance(each, HttpToolsProtocol) and each.cycle is None for each in new)


def _uvicorn_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """
    Raises:
      ConfigError: the certificate or its key cannot be used.
    """
    config = uvicorn.Config(
        app,
        http=cast(type[asyncio.Protocol], partial(LimitedConnection, stall_s=settings.stall_timeout)),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(LAST_STEP_S),
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
    )
    try:
        config.load()
    except OSError as error:  # that of a file, or ssl.SSLError
        reason = error.strerror or error
        raise ConfigError(f"ssl_certfile {settings.ssl_certfile}, ssl_keyfile: cannot be used ({reason})") from None
    return config


async def run_beside(life: Life, server: uvicorn.Server, listeners: list[socket.socket]) -> BaseException | None:
    """Serves, from before the engine is ready, until its life is over; gives the engine's failure, if any."""

    async def live() -> BaseException | None:
        try:
            return await life.run()
        finally:
            server.should_exit = True

    living = asyncio.create_task(live())
    await server.serve(sockets=listeners)
    return await living


async def accept_rest(listeners: Sequence[socket.socket]) -> None:
    """Returns when the event loop has accepted all connections that the system has taken. It takes next to no new ones
    meanwhile."""
    poll = select.poll()
    for listener in listeners:
        listener.listen(0)
        poll.register(listener, select.POLLIN)
    while poll.poll(0):  # noqa: ASYNC110 - the event loop accepts, and tells nobody
        await asyncio.sleep(_WATCH_S)


def _listen(host: str, port: int) -> socket.socket:
    """Takes the port before anything slow is done.

    Raises:
      ConfigError: the address is taken, or none of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        takes_both = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=2048, dualstack_ipv6=takes_both)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # which repeats the address
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}") from None


def _url(settings: Settings, listener: socket.socket) -> str:
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    scheme = "http" if settings.ssl_certfile is None else "https"
    return f"{scheme}://{name}:{listener.getsockname()[1]}"
