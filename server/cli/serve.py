"""`roost serve`: one process, from its settings to its exit status."""

import asyncio
import gc
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from ...engine import (
    SIMULATED,
    AsyncEngine,
    DeviceFacts,
    EngineConfig,
    EngineDeadError,
    ModelSource,
    RoostError,
    device_facts,
    follow,
)
from ..api.openai.adoption import Adopter
from ..app import create_app
from ..generation.batches import BatchStore
from ..generation.checkpointer import Checkpointer
from ..generation.durable_responses import DurableResponses
from ..generation.response_store import ResponseStore
from ..generation.service import Service
from ..lifecycle.batch_worker import BatchWorker
from ..lifecycle.connection_limit import ConnectionLimit, raise_file_limit
from ..lifecycle.engine_config import engine_config
from ..lifecycle.engine_loading import LoadProgress, exit_while_loading, is_loading, make_engine
from ..lifecycle.http_server import HttpServer, Listeners, uvicorn_config
from ..lifecycle.lifecycle import Lifecycle, Timeouts, serve_until_stopped
from ..lifecycle.response_store import (
    close_stores,
    evacuation,
    is_store_stuck,
    make_checkpointer,
    open_batches,
    open_responses,
)
from ..lifecycle.service import make_service
from ..lifecycle.signals import Signals, exit_now
from ..lifecycle.startup_message import greeting, summary
from ..middleware.auth import Access, load_access
from ..model_hub import find_model
from ..observability.logging import is_json, log_warnings_and_uncaught, say, set_up_logging
from ..observability.metrics import Metrics
from ..observability.telemetry import Telemetry, open_telemetry
from ..settings import Settings, chosen_platforms
from ..text.served_model import ServedModel, open_served_model
from ..transport.open_connections import OpenConnections
from .accelerators import unused_accelerator

_SWITCH_INTERVAL_S: Final = 0.0005
"""Seconds that a thread keeps the interpreter while others wait: a tenth of Python's default, since the event loop and
the engine wait that long for each worker thread."""

_logger = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Serves until a signal comes or the engine dies.

    Returns:
      The exit status.

    Raises:
      RoostError: A setting is wrong, the model cannot be loaded, or the port is in use.
    """
    signals = _prepare_process(settings)
    config, source = engine_config(settings), find_model(settings.model)
    if config.hosts is not None and not config.hosts.is_leader:
        return _follow(source, config)
    model = open_served_model(source, config, settings.served_model_name, settings.max_tokens_limit)
    listeners = Listeners.bind(settings)
    access = load_access(settings, listeners.admin_port)
    config = replace(config, tenants=max(len(access.keys.owners), 1))
    telemetry = open_telemetry(settings, model.id)
    progress = LoadProgress(config.compile_cache)
    engine = make_engine(source, config, progress)
    responses = open_responses(settings)
    batches = open_batches(settings)
    limit = ConnectionLimit(settings, lambda: engine.stats.slots, raise_file_limit())
    connections = OpenConnections(limit, listeners.admin_port)
    metrics = _metrics(settings, engine, model, access, telemetry, responses, batches, connections)
    service = make_service(settings, config, engine, model, metrics, responses, batches)
    app = create_app(
        service, access, max_body_bytes=settings.max_body_bytes, strict=settings.strict, trace=telemetry.trace
    )
    server = HttpServer(uvicorn_config(app, settings, connections), signals)
    checkpointer = make_checkpointer(settings, engine, responses, telemetry.observers)
    lifecycle = Lifecycle(
        service,
        signals,
        Timeouts(settings.drain_lag, settings.drain_timeout, settings.step_timeout),
        on_ready=lambda: _start(
            settings,
            service,
            checkpointer,
            partial(_announce, source, config, service, listeners.url(settings), limit),
        ),
        evacuate=evacuation(responses, checkpointer),
    )
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        close = partial(close_stores, responses, batches)
        failure = runner.run(serve_until_stopped(lifecycle, server, listeners.sockets(), close))
        if is_loading(engine):
            exit_while_loading(progress, 0)
    telemetry.close()
    is_stuck = engine.is_stuck or is_store_stuck(responses, batches)
    return _exit_status(failure, is_stuck=is_stuck)


def _prepare_process(settings: Settings) -> Signals:
    """Sets what a process has once: thread switching, signal handlers and logging."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    signals = Signals()
    signals.install()
    as_json = settings.log_format == "json"
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    set_up_logging(level, as_json=as_json, access_log=settings.access_log)
    if as_json:
        log_warnings_and_uncaught()
    _logger.debug("imports and settings: %.2f s of processor time", time.process_time())
    for warning in settings.warnings:
        _logger.warning("%s", warning)
    return signals


def _metrics(
    settings: Settings,
    engine: AsyncEngine,
    model: ServedModel,
    access: Access,
    telemetry: Telemetry,
    responses: ResponseStore,
    batches: BatchStore | None,
    connections: OpenConnections,
) -> Metrics:
    return Metrics(
        lambda: engine.stats,
        tenants=access.keys.owners,
        vllm_model=model.id if settings.metrics_compat == "vllm" else None,
        observers=telemetry.observers,
        store=responses.stats if isinstance(responses, DurableResponses) else None,
        batches=None if batches is None else (lambda: batches.totals),
        connections=connections.counts_by_port,
        simulated=model.simulated,
    )


def _start(
    settings: Settings, service: Service, checkpointer: Checkpointer | None, announce: Callable[[], None]
) -> None:
    """Begins to take checkpoints, to adopt responses and to run lines of batches, and announces the server."""
    if checkpointer is not None:
        checkpointer.start()
    if isinstance(service.responses, DurableResponses):
        Adopter(service, service.responses).start()
    if service.batches is not None:
        app = create_app(service, max_body_bytes=settings.max_body_bytes, strict=settings.strict)
        BatchWorker(service, app, service.batches, settings.max_body_bytes).start()
    announce()


def _announce(source: ModelSource, config: EngineConfig, service: Service, url: str, limit: ConnectionLimit) -> None:
    """Prints the address and what is served, and warns of an accelerator that is not used and of too few files."""
    gc.freeze()  # a full collection would visit all objects of the libraries and the model, which takes 100 ms and more
    device = _device_facts(config)
    lines = summary(source, config, service.engine.stats.slots, service.model.id, url, device, service.store_address)
    if is_json():
        say(greeting(url), fields=dict(line.split(maxsplit=1) for line in lines))
    else:
        say("\n".join(["", greeting(url), "", *lines, ""]))
    if warning := unused_accelerator(device.platform, chosen_platforms()):
        _logger.warning("%s", warning)
    if limit.warning is not None:
        _logger.warning("%s", limit.warning)


def _device_facts(config: EngineConfig) -> DeviceFacts:
    """Returns facts about the devices; a simulation does not ask JAX, which would take an accelerator for itself."""
    if config.simulate is None:
        return device_facts()
    _logger.warning("simulating %s: no model runs; times are made up, and so are texts", config.simulate.text)
    return DeviceFacts(config.simulate.text, 1 if config.shards is None else config.shards.count, None, SIMULATED)


def _follow(source: ModelSource, config: EngineConfig) -> int:
    """Serves as one of the leader's hosts. The leader ends the process, also after a signal."""
    try:
        follow(source, config, partial(exit_now, 1), LoadProgress(config.compile_cache))
    except EngineDeadError as error:
        _logger.critical("%s", error)
        exit_now(1)  # devices may be waiting for those of the leader
    return 0


def _exit_status(failure: BaseException | None, *, is_stuck: bool) -> int:
    """Returns the exit status; ends the process at once if a thread is stuck.

    Raises:
      RoostError: The engine's failure, if a user can fix it.
    """
    if isinstance(failure, RoostError) and not isinstance(failure, EngineDeadError):
        raise failure
    if failure is not None:
        _logger.critical("the engine died: %s", failure, exc_info=None if isinstance(failure, RoostError) else failure)
    status = 0 if failure is None else 1
    if is_stuck:
        exit_now(status)
    return status
