"""`roost chat`: reads messages and commands, and keeps the conversation."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import platformdirs

from ...client.openai_server import server_addresses
from ...terminal.failure import INTERRUPTED_STATUS, CommandError
from ...terminal.text import StreamWriter, print_status, printable, replace_unencodable_characters
from ..options import ChatSessionOptions
from .backends import ChatBackend, ChatTurn, LoadedState, Reply, ServerChat

HELP: Final = '''\
/system TEXT  set the system prompt; without TEXT, remove it
/retry        answer the last question anew
/reset        forget the conversation, but not the system prompt
/fork [N]     keep the conversation as it is here; with N, go back to fork N
/save FILE    save the state after the last answer
/load FILE    show the chat of a saved state, and go on after it
/help         show this
/exit         leave, as Ctrl-D does
"""           begins and ends a text of several lines
Ctrl-C        stop the answer; what there is of it stays in the conversation'''

_QUOTE: Final = '"""'

PROMPT: Final = ">>> "

_CONTINUATION: Final = "... "

_MAX_HISTORY: Final = 1000
"""Maximum number of lines in the history file."""

type ReadLine = Callable[[str], str]
"""Shows a prompt and returns a line without its end. Raises EOFError at the end of the input."""


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
        from .local_backend import LocalChat

        return LocalChat(options)

    (address,) = server_addresses([options.url], options.api_key, options.settings)
    return ServerChat(options, address)


@dataclass(frozen=True, slots=True)
class ChatState:
    """A conversation at one point.

    Attributes:
      system: System prompt; empty sends none.
      state: Saved state that the turns continue; None begins a new conversation.
      turns: Messages of the user and the assistant.
      before, last_message: The last message of the user, and the turns before it; None without one.
      reply: The last response; None if there is none.
    """

    system: str = ""
    state: LoadedState | None = None
    turns: Sequence[ChatTurn] = ()
    before: Sequence[ChatTurn] = ()
    last_message: str | None = None
    reply: Reply | None = None


class Session:
    """Reads messages and commands until the input ends.

    Args:
      runner: Event loop of the backend.
      backend: ChatBackend that responds.
      read_line: Reads a line of the user.
      is_interactive: Whether a user is at the terminal. If not, the first error ends the session.
      system: System prompt; empty sends none.
    """

    def __init__(
        self,
        runner: asyncio.Runner,
        backend: ChatBackend,
        read_line: ReadLine,
        *,
        is_interactive: bool,
        system: str = "",
    ) -> None:
        self._runner = runner
        self._backend = backend
        self._read_line = read_line
        self._is_interactive = is_interactive
        self._conversation = ChatState(system)
        self._forks: list[ChatState] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: print_status(HELP),
            "/system": self._set_system,
            "/retry": self._retry,
            "/reset": self._reset,
            "/fork": self._fork,
            "/save": self._save,
            "/load": self._load,
        }

    def run(self) -> int:
        """Runs until the input ends.

        Returns:
          The exit status.

        Raises:
          CommandError: A response failed and the session is not interactive.
        """
        while True:
            try:
                text = read_message(self._read_line)
                if text is None or text.strip() in ("/exit", "/quit", "/bye"):
                    if text is None and self._is_interactive:
                        print_status("")
                    return 0
                self._handle(text)
            except KeyboardInterrupt:
                if not self._is_interactive:
                    return INTERRUPTED_STATUS
                print_status("\n(Ctrl-D leaves)")
            except CommandError as error:
                if not self._is_interactive:
                    raise
                print_status(f"roost: {printable(str(error))}")

    def _handle(self, text: str) -> None:
        if text.startswith("/") and "\n" not in text:
            name, _, argument = text.strip().partition(" ")
            if name not in self._commands:
                raise CommandError(
                    f"{name} is no command; /help lists them (put a space in front of a text that begins with /)"
                )
            self._commands[name](argument.strip())
        elif text.strip():
            self._send(text, self._conversation.turns)

    def _send(self, message: str, before: Sequence[ChatTurn]) -> None:
        """Responds to a message that follows `before`. Both are added to the conversation once there is a response."""
        self._conversation = now = replace(self._conversation, last_message=message, before=before)
        system = [ChatTurn("system", now.system)] if now.system else []
        messages = [*before, ChatTurn("user", message)]
        writer = StreamWriter()
        reply = Reply(writer.write)
        try:
            with writer:
                state_id = None if now.state is None else now.state.id
                self._runner.run(_interruptible(self._backend.respond([*system, *messages], reply, state_id)))
        except asyncio.CancelledError:
            if not self._is_interactive:
                raise KeyboardInterrupt from None
            print_status("(stopped)" if writer.text else "\n(stopped)")
        if writer.text:
            self._conversation = replace(now, turns=[*messages, ChatTurn("assistant", writer.text)], reply=reply)
        if reply.is_truncated:
            print_status("(cut off at the limit of tokens; see --max-tokens)")

    def _set_system(self, text: str) -> None:
        self._conversation = replace(self._conversation, system=text)
        self._note("the system prompt is set" if text else "there is no system prompt")

    def _retry(self, _: str) -> None:
        if self._conversation.last_message is None:
            raise CommandError("/retry: there is no question yet")
        self._send(self._conversation.last_message, self._conversation.before)

    def _reset(self, _: str) -> None:
        self._conversation = ChatState(self._conversation.system)
        self._note("the conversation is forgotten")

    def _fork(self, number: str) -> None:
        """Keeps the conversation, or returns to one that was kept."""
        if not number:
            self._forks.append(self._conversation)
            self._note(f"this is fork {len(self._forks)}: /fork {len(self._forks)} comes back to it")
        elif number.isdecimal() and 0 < int(number) <= len(self._forks):
            self._conversation = self._forks[int(number) - 1]
            self._note(f"this is fork {number}, with {len(self._conversation.turns)} messages")
        else:
            raise CommandError(
                f"/fork {number}: there is no such fork; /fork keeps one, and there are {len(self._forks)}"
            )

    def _save(self, file: str) -> None:
        reply = self._conversation.reply
        if not file:
            raise CommandError("/save: name the file, as in /save boat.state")
        if reply is None or reply.id is None:
            raise CommandError("/save: there is no answer yet")
        data = self._runner.run(self._backend.save(reply))
        try:
            Path(file).expanduser().write_bytes(data)
        except OSError as error:
            raise CommandError(f"/save: {file} cannot be written ({error.strerror})") from None
        self._note(f"the state is in {file}, {len(data):,} bytes")

    def _load(self, file: str) -> None:
        """Shows and continues the chat of a state file, which replaces the conversation and its system prompt."""
        if not file:
            raise CommandError("/load: name the file, as in /load boat.state")
        try:
            data = Path(file).expanduser().read_bytes()
        except OSError as error:
            raise CommandError(f"/load: {file} cannot be read ({error.strerror})") from None
        state = self._runner.run(self._backend.load(data))
        self._conversation = ChatState(state=state)
        for message in state.messages if self._is_interactive else ():
            print_status(printable(message.content if message.role == "assistant" else f"{PROMPT}{message.content}"))
        unseen = "" if state.messages else ", whose text cannot be shown"
        self._note(f"the conversation continues after the {state.num_tokens} tokens of {file}{unseen}")

    def _note(self, text: str) -> None:
        if self._is_interactive:
            print_status(f"({text})")


async def _interruptible[T](work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work`; Ctrl-C cancels it.

    `asyncio.Runner` handles SIGINT in a plain signal handler, which does not wake a loop that is about to wait for
    events: the response would continue until its next token. A signal handler of the event loop wakes it.

    Raises:
      CancelledError: The user pressed Ctrl-C.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        return await work
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def read_message(read_line: ReadLine) -> str | None:
    '''Reads a message: a line, or several lines between """ and """. The end of the input also ends quotes.

    Returns:
      The message, or None at the end of the input.
    '''
    try:
        line = read_line(PROMPT)
    except EOFError:
        return None
    if not line.startswith(_QUOTE):
        return line
    lines = [line.removeprefix(_QUOTE)]
    with contextlib.suppress(EOFError):
        while not lines[-1].rstrip().endswith(_QUOTE):
            lines.append(read_line(_CONTINUATION))
    lines[-1] = lines[-1].rstrip().removesuffix(_QUOTE)
    return "\n".join(lines).strip("\n")


def line_reader() -> ReadLine:
    """Returns the reader of this process's stdin."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return _TerminalLines(history_file())
    return _read_plain_line


def history_file() -> Path:
    """Returns the path of the history."""
    return platformdirs.user_state_path("roost", appauthor=False) / "chat_history"


def _read_plain_line(prompt: str) -> str:
    if sys.stdin.isatty():  # stdout is a pipe, where a prompt would not be seen
        print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n").removesuffix("\r")


class _TerminalLines:
    """Reads lines with `input`, and with readline if Python has it.

    Each line is written to the history file immediately. Errors of the file are ignored.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._readline: ModuleType | None = None
        with contextlib.suppress(ImportError):  # Windows has none
            import readline

            self._readline = readline
            readline.set_history_length(_MAX_HISTORY)
            with contextlib.suppress(OSError):
                self._open_history()
                readline.read_history_file(path)

    def __call__(self, prompt: str) -> str:
        line = input(prompt)
        if line.strip() and self._readline is not None:
            with contextlib.suppress(OSError):
                self._open_history()
                if hasattr(self._readline, "append_history_file"):
                    self._readline.append_history_file(1, self._path)
                else:
                    self._readline.write_history_file(self._path)
        return line

    def _open_history(self) -> None:
        """Creates the file so that only its owner can read it."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
