"""Runs `roost chat`, from its options to its exit status."""

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ...settings import SettingsError, load_settings
from ...terminal.failure import INTERRUPTED_STATUS
from ...terminal.text import print_status, printable, replace_unencodable_characters
from ..sampling_options import SamplingOptions
from .backend import ChatBackend
from .line_input import line_reader
from .session import Session


@dataclass(frozen=True, slots=True)
class ChatSessionOptions:
    """Options of `roost chat`.

    Attributes:
      model: Checkpoint, or with `url` the id of one of the server's models; None takes demo or the server's first.
      url: Address of a server; None loads the model into this process.
      api_key: Key of the server; None sends none.
      system: System prompt; empty sends none.
      sampling: Sampling options.
      model_settings: Settings of a model in this process; a value of None selects the setting's default.
    """

    model: str | None = None
    url: str | None = None
    api_key: str | None = None
    system: str = ""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    model_settings: Mapping[str, Any] = field(default_factory=dict)


def chat(options: ChatSessionOptions) -> int:
    """Chats until the input ends.

    Returns:
      The exit status.

    Raises:
      SettingsError: An option cannot be used.
      CommandError: The server cannot be reached; without a terminal also, a response failed.
      RoostError: The model cannot be loaded.
    """
    replace_unencodable_characters()
    backend = _backend(options)
    with asyncio.Runner() as runner:
        try:
            return _run(runner, backend, options)
        finally:
            runner.run(backend.close())


def _run(runner: asyncio.Runner, backend: ChatBackend, options: ChatSessionOptions) -> int:
    try:
        name = runner.run(backend.start())
    except KeyboardInterrupt:
        backend.exit_if_loading(INTERRUPTED_STATUS)
        return INTERRUPTED_STATUS
    is_interactive = sys.stdin.isatty()
    if is_interactive:
        where = f" on {options.url}" if options.url else ""
        print_status(printable(f"{name}{where}: /help lists commands, Ctrl-D leaves"))
    return Session(runner, backend, line_reader(), is_interactive=is_interactive, system=options.system).run()


def _backend(options: ChatSessionOptions) -> ChatBackend:
    """Imports and opens a backend. The client of a server does not import JAX, which takes seconds."""
    if options.url is None:
        from ..local_model import LocalModel
        from .local_backend import LocalChat

        settings = load_settings({"model": options.model or "demo", **options.model_settings})
        return LocalChat(LocalModel(settings), options.sampling)
    from ...client.http_client import Address, UrlError
    from .server_backend import ServerChat

    for name, value in options.model_settings.items():
        if value is not None:
            raise SettingsError(f"--{name.replace('_', '-')} is for a model that is loaded here, not with --url")
    try:
        address = Address.parse(options.url)
    except UrlError as error:
        raise SettingsError(f"--url {error}") from None
    if options.api_key is not None and not (options.api_key.isascii() and options.api_key.isprintable()):
        raise SettingsError("--api-key must be printable ASCII in one line")
    fields = {name: value for name, value in asdict(options.sampling).items() if value is not None}
    return ServerChat(address, options.api_key, options.model, fields)
