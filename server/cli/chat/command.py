"""The command: from its options to its exit status."""

import asyncio
import sys
from dataclasses import asdict, dataclass, field
from typing import Final

from ...settings import SettingsError, load_settings
from ...terminal.text import printable, replace_what_cannot_be_encoded
from ..sampling_options import SamplingOptions
from .backend import Backend
from .line_input import line_reader
from .session import Session, say

_INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class Options:
    """
    Attributes:
      model: a checkpoint, or with `url` the id of one of the server's models; None takes demo or the server's first.
      url: of a server; None loads the model into this process.
      dtype, quantize: of a model in this process.
    """

    model: str | None = None
    url: str | None = None
    api_key: str | None = None
    system: str = ""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    dtype: str | None = None
    quantize: str | None = None


def chat(options: Options) -> int:
    """Talks until the input ends; returns the exit status.

    Raises:
      SettingsError: an option cannot be used.
      CommandError: the server cannot be reached; without a terminal also, a question has no answer.
      RoostError: the model cannot be loaded.
    """
    replace_what_cannot_be_encoded()
    backend = _backend(options)
    with asyncio.Runner() as runner:
        try:
            return _talk(runner, backend, options)
        finally:
            runner.run(backend.close())


def _talk(runner: asyncio.Runner, backend: Backend, options: Options) -> int:
    try:
        name = runner.run(backend.start())
    except KeyboardInterrupt:
        backend.leave_if_loading(_INTERRUPTED)
        return _INTERRUPTED
    is_interactive = sys.stdin.isatty()
    if is_interactive:
        where = f" on {options.url}" if options.url else ""
        say(printable(f"{name}{where}: /help lists commands, Ctrl-D leaves"))
    return Session(runner, backend, line_reader(), is_interactive=is_interactive, system=options.system).run()


def _backend(options: Options) -> Backend:
    """Imports what this backend needs: a server's client does without JAX, which takes seconds."""
    if options.url is None:
        from ..local_model import LocalModel
        from .local_backend import LocalBackend

        flags = {"model": options.model or "demo", "dtype": options.dtype, "quantize": options.quantize}
        settings = load_settings(flags)
        return LocalBackend(LocalModel(settings), options.sampling)
    from ...client.http_client import Address, UrlError
    from .server_backend import ServerBackend

    for name in ("dtype", "quantize"):
        if getattr(options, name) is not None:
            raise SettingsError(f"--{name} is for a model that is loaded here, not with --url")
    try:
        address = Address.parse(options.url)
    except UrlError as error:
        raise SettingsError(f"--url {error}") from None
    if options.api_key is not None and not (options.api_key.isascii() and options.api_key.isprintable()):
        raise SettingsError("--api-key must be printable ASCII in one line")
    fields = {name: value for name, value in asdict(options.sampling).items() if value is not None}
    return ServerBackend(address, options.api_key, options.model, fields)
