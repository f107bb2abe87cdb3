"""`roost serve` in one process, from its settings to its exit status."""

import asyncio
import gc
import logging
import sys
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Final

from ...engine import (
    SIMULATED,
    DeviceFacts,
    EngineConfig,
    EngineDeadError,
    ModelSource,
    RoostError,
    device_facts,
    follow,
)
from ..app import create_app, open_features
from ..assembly.service import LoadProgress, engine_config, exit_if_loading, make_engine, make_service
from ..feature import Opening
from ..generation.service import Service
from ..http.auth import is_shared_without_keys, load_access
from ..http.connection import OpenConnections
from ..model_hub import find_model
from ..observability.logging import is_json, log_warnings_and_uncaught, say, set_up_logging
from ..observability.metrics import Metrics, ThroughputLog
from ..observability.telemetry import open_tracing
from ..run.file_reloads import FileReloads, file_sources
from ..run.http_server import HttpServer, Listeners, connection_limit, raise_file_limit, uvicorn_config
from ..run.lifecycle import Lifecycle, serve_until_stopped
from ..run.startup_message import greeting, summary
from ..settings import Settings
from ..terminal.exits import Signals, exit_now
from ..text.served_model import ServedModel, open_served_model

_SWITCH_INTERVAL_S: Final = 0.0005
"""Seconds for which a thread keeps the interpreter lock while others wait. This is a tenth of Python's default, since
the event loop and the engine wait that long for each worker thread."""

_UNTRUSTED_FILES: Final = (
    "this server has no API keys and may have several users: imported states answer only from_state, and prompts with "
    "the cache_salt of their import"
)
"""Line at the start of a server whose clients could otherwise change each other's answers."""

_logger = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Serves until a signal comes or the engine dies.

    Returns:
      The exit status.

    Raises:
      RoostError: A setting is wrong, the model cannot be loaded, or the port is in use.
    """
    signals = _prepare_process(settings)
    config, source = engine_config(settings), find_model(settings.model, settings.lora)
    if config.hosts is not None and not config.hosts.is_leader:
        return _follow(source, config)
    model = open_served_model(source, config, settings.served_model_name, settings.max_tokens_limit)
    with closing(Listeners.bind(settings)) as listeners:
        failure, is_stuck = _serve(settings, source, config, model, listeners, signals)
    return _exit_status(failure, is_stuck=is_stuck)


def _serve(
    settings: Settings,
    source: ModelSource,
    config: EngineConfig,
    model: ServedModel,
    listeners: Listeners,
    signals: Signals,
) -> tuple[BaseException | None, bool]:
    """Serves on bound ports; returns the engine's failure, and whether a thread is stuck."""
    on_loopback = listeners.is_on_loopback
    access = load_access(settings, listeners.admin_port, on_loopback=on_loopback)
    is_shared = is_shared_without_keys(access, settings, on_loopback=on_loopback)
    config = replace(config, tenants=max(len(access.keys.owners), 1))
    tracing = open_tracing(settings, model.id)
    progress = LoadProgress()
    engine = make_engine(source, config, progress)
    max_files = raise_file_limit()
    connections = OpenConnections(connection_limit(settings, 0, max_files)[0], listeners.admin_port)
    metrics = Metrics(
        lambda: engine.stats,
        tenants=access.keys.owners,
        vllm_model=model.id if settings.metrics_compat == "vllm" else None,
        observers=() if tracing is None else (tracing,),
        connections=connections.counts_by_port,
        simulated=model.simulated,
    )
    service = replace(
        make_service(settings, config, engine, model, metrics, is_shared_without_keys=is_shared),
        loading=lambda: progress.text,
    )
    features = open_features(Opening(service, settings, config.tenants))
    make_app = partial(
        create_app, service, features=features, strict=settings.strict, root_path=settings.root_path or ""
    )
    app = make_app(access, trace=None if tracing is None else tracing.middleware)
    server = HttpServer(uvicorn_config(app, settings, connections), signals)
    reloads = FileReloads(file_sources(settings, access, server.config, metrics.reloads), signals, metrics.reloads)
    tasks = (reloads.run, ThroughputLog(lambda: engine.stats).run)

    def start() -> None:
        connections.public.limit, advice = connection_limit(settings, engine.stats.slots, max_files)
        for feature in features:
            feature.start(make_app)
        _announce(settings, source, config, service, listeners.url(settings), advice)

    lifecycle = Lifecycle(service, signals, settings, on_ready=start, features=features)
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        failure = runner.run(serve_until_stopped(lifecycle, server, listeners.sockets(), features, tasks))
        exit_if_loading(engine, progress, 0)
    if tracing is not None:
        tracing.shut_down()
    return failure, engine.is_stuck or any(feature.is_stuck for feature in features)


def _prepare_process(settings: Settings) -> Signals:
    """Sets the process-wide state: thread switching, signal handlers and logging."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    signals = Signals()
    signals.install()
    as_json = settings.log_format == "json"
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    set_up_logging(level, as_json=as_json, access_log=settings.access_log)
    if as_json:
        log_warnings_and_uncaught()
    for warning in settings.warnings:
        _logger.warning("%s", warning)
    return signals


def _announce(
    settings: Settings,
    source: ModelSource,
    config: EngineConfig,
    service: Service,
    url: str,
    advice: str,
) -> None:
    """Prints the address and the served model, and advice about the limit of open files."""
    gc.freeze()  # a full collection would visit all objects of the libraries and the model, which takes at least 100 ms
    slots, store = service.engine.stats.slots, str(settings.store_address)
    lines = summary(source, config, slots, service.model.id, url, _device_facts(config), store)
    if is_json():
        say(greeting(url), fields=dict(line.split(maxsplit=1) for line in lines))
    else:
        say("\n".join(["", greeting(url), "", *lines, ""]))
    if not service.trusts_state_files:
        _logger.info("%s", _UNTRUSTED_FILES)
    if advice:
        _logger.warning("%s", advice)


def _device_facts(config: EngineConfig) -> DeviceFacts:
    """Returns facts about the devices. A simulation does not use JAX, which would reserve an accelerator."""
    if config.simulate is None:
        return device_facts()
    _logger.warning("simulating %s: no model runs; times are made up, and so are texts", config.simulate.text)
    return DeviceFacts(config.simulate.text, 1 if config.shards is None else config.shards.count, None, SIMULATED)


def _follow(source: ModelSource, config: EngineConfig) -> int:
    """Serves as one of the leader's hosts. The leader ends the process, even after a signal."""
    try:
        follow(source, config, partial(exit_now, 1), LoadProgress())
    except EngineDeadError as error:
        _logger.critical("%s", error)
        exit_now(1)  # devices may be waiting for the leader's devices
    return 0


def _exit_status(failure: BaseException | None, *, is_stuck: bool) -> int:
    """Returns the exit status; exits the process immediately if a thread is stuck.

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
