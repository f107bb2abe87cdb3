"""Runs `roost batch`, from its options to its exit status."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ....settings import SettingsError, load_settings
from ....terminal.failure import FAILURE_STATUS, INTERRUPTED_STATUS
from ....terminal.signals import Signals
from ....terminal.text import print_status
from .line_files import InputFile, OutputFile
from .run import BatchBackend, BatchProgress, BatchRun, Counts

_CONCURRENCY: Final = 64
"""Default number of lines that each server works on at the same time. Servers refuse lines if they have no room."""


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """Options of `roost batch`.

    Attributes:
      input: File of requests.
      output: File of responses, which also records the progress.
      sort: Whether to sort the output into the order of the input at the end.
      urls: Addresses of servers, separated by commas; None loads a model into this process.
      api_key: Key of the servers; None sends none.
      concurrency: Number of lines that each server works on at the same time.
      model_settings: Settings of a model in this process; a value of None selects the setting's default.
    """

    input: Path
    output: Path
    sort: bool
    urls: str | None
    api_key: str | None
    concurrency: int | None
    model_settings: dict[str, Any]


def batch(options: BatchOptions) -> int:
    """Runs all lines that have no response in the output yet.

    Returns:
      The exit status, which is 1 if every line of this run ended with an error.

    Raises:
      SettingsError: An option cannot be used.
      CommandError: A file cannot be used, or the servers stopped responding.
      RoostError: The model cannot be loaded.
    """
    signals, status = Signals(), 0
    signals.install()
    with InputFile(options.input) as source, OutputFile(options.output, source.index) as output:
        source.check_requests()
        num_done = int(output.is_done.sum())
        if num_done:
            print_status(f"{options.output} has {num_done:,} of {len(source.index):,} lines already")
        if num_done < len(source.index):
            backend = _backend(options, signals)
            with BatchProgress(len(source.index), num_done) as progress:
                counts = asyncio.run(_run(backend, source, output, signals, progress))
            print_status(_summary(counts, progress.speed(counts)))
            status = FAILURE_STATUS if 0 < counts.num_lines == counts.num_failed else 0
        output.save()
        if not output.is_done.all():
            left = int((~output.is_done).sum())
            print_status(f"interrupted with {left:,} lines left; run the same command again to continue")
            return INTERRUPTED_STATUS
        if options.sort:
            output.sort()
    return status


async def _run(
    backend: BatchBackend, source: InputFile, output: OutputFile, signals: Signals, progress: BatchProgress
) -> Counts:
    try:
        await backend.start()
        progress.begin()
        lines = source.lines(output.is_done)
        run = BatchRun(backend, lines, output, lambda: signals.first is not None, progress.show)
        await run.run()
        return run.counts
    finally:
        await backend.close()


def _summary(counts: Counts, speed: float) -> str:
    failed = f", {counts.num_failed:,} of them with errors" if counts.num_failed else ""
    tokens = f"{counts.prompt_tokens:,} prompt tokens and {counts.generated_tokens:,} generated"
    return f"{counts.num_lines:,} lines{failed}; {tokens}, {speed:,.0f} per second"


def _backend(options: BatchOptions, signals: Signals) -> BatchBackend:
    """Imports and opens a backend. The client of servers does not import JAX, which takes seconds."""
    if options.urls is None:
        if options.concurrency is not None:
            raise SettingsError("--concurrency is for servers: give --url, or --slots for a model that is loaded here")
        from .local_backend import LocalBatch

        settings = load_settings({**options.model_settings, "itl_target_ms": 0, "request_timeout": "off"})
        return LocalBatch(settings, lambda: signals.first is not None)
    from ....client.http_client import Address, UrlError
    from .server_backend import ServerBatch

    for name, value in options.model_settings.items():
        if value is not None:
            raise SettingsError(f"--{name.replace('_', '-')} is for a model that is loaded here, not with --url")
    try:
        addresses = [Address.parse(url.strip()) for url in options.urls.split(",")]
    except UrlError as error:
        raise SettingsError(f"--url {error}") from None
    if options.api_key is not None and not (options.api_key.isascii() and options.api_key.isprintable()):
        raise SettingsError("--api-key must be printable ASCII in one line")
    return ServerBatch(addresses, options.api_key, options.concurrency or _CONCURRENCY)
