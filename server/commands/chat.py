"""`roost chat`: reads messages and commands, keeps the conversation, and has a server or `LocalChat` respond."""

import asyncio
import contextlib
import readline
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol, TypedDict, runtime_checkable

import orjson
import platformdirs

from ..client import (
    ClientError,
    EventParser,
    HttpClient,
    Response,
    first_model,
    http_failure,
    server_addresses,
)
from ..features.index import modules_of
from ..terminal.exits import INTERRUPTED_STATUS, CommandError
from ..terminal.text import StreamWriter, print_status, printable, replace_unencodable_characters
from .options import ChatSessionOptions

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


class ChatTurn(TypedDict):
    """Message of a conversation. `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(slots=True)
class Reply:
    """A response that a backend writes.

    Attributes:
      show: Called with each piece of text.
      id: Id under which the backend saves its state; None until the response starts.
      is_truncated: Whether the token limit ended it.
    """

    show: Callable[[str], None] = field(repr=False)
    id: str | None = None
    is_truncated: bool = False


type LoadedState = Mapping[str, Any]
"""A saved state that conversations continue, as the API shows it: its `id`, the number of its `tokens`, and the
`messages` of its chat, unless its tokens are not a chat in the model's format.
"""


@runtime_checkable
class ChatBackend(Protocol):
    """Responds to a conversation. Its coroutines run in one event loop.

    All of them raise `CommandError`: the server cannot be reached or refuses, the model cannot be loaded, or a file
    holds no state of it.
    """

    async def start(self) -> str:
        """Prepares the backend.

        Returns:
          The model's name.
        """

    async def respond(self, messages: Sequence[ChatTurn], reply: Reply, state_id: str | None = None) -> None:
        """Responds to the last message. Cancelling it stops the response.

        Args:
          messages: The conversation, or the messages after the state.
          reply: Receives the response.
          state_id: Id of a loaded state that the messages continue.
        """

    async def save(self, reply: Reply) -> bytes:
        """Returns the state after a response, as a file."""

    async def load(self, data: bytes) -> LoadedState:
        """Loads the state in a file."""

    async def close(self) -> None:
        """Releases the backend's resources."""


type ReadLine = Callable[[str], str]
"""Shows a prompt and returns a line without its end. Raises EOFError at the end of the input."""


def chat(backend: ChatBackend, options: ChatSessionOptions) -> int:
    """Chats until the input ends.

    Returns:
      The exit status.

    Raises:
      CommandError: The server cannot be reached; without a terminal also, a response failed.
      RoostError: The model cannot be loaded.
    """
    replace_unencodable_characters()
    is_interactive = sys.stdin.isatty()
    with asyncio.Runner() as runner:
        try:
            name = runner.run(backend.start())
            if is_interactive:
                where = f" on {options.url}" if options.url else ""
                print_status(printable(f"{name}{where}: /help lists commands, Ctrl-D leaves"))
            session = Session(runner, backend, line_reader(), is_interactive=is_interactive, system=options.system)
            return session.run()
        except KeyboardInterrupt:
            return INTERRUPTED_STATUS
        finally:
            runner.run(backend.close())


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
                    raise
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
        system = [ChatTurn(role="system", content=now.system)] if now.system else []
        messages = [*before, ChatTurn(role="user", content=message)]
        writer = StreamWriter()
        reply = Reply(writer.write)
        try:
            with writer:
                state_id = None if now.state is None else now.state["id"]
                self._runner.run(_interruptible(self._backend.respond([*system, *messages], reply, state_id)))
        except asyncio.CancelledError:
            if not self._is_interactive:
                raise KeyboardInterrupt from None
            print_status("(stopped)" if writer.text else "\n(stopped)")
        if writer.text:
            self._conversation = replace(
                now, turns=[*messages, ChatTurn(role="assistant", content=writer.text)], reply=reply
            )
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
            kept = f"there are {len(self._forks)}, from /fork 1 on" if self._forks else "none is kept yet"
            raise CommandError(f"/fork {number}: there is no such fork: {kept}; /fork alone keeps the conversation")

    def _save(self, file: str) -> None:
        path = _path("/save", file)
        reply = self._conversation.reply
        if reply is None or reply.id is None:
            raise CommandError("/save: there is no answer yet")
        data = self._runner.run(self._backend.save(reply))
        try:
            path.write_bytes(data)
        except OSError as error:
            raise CommandError(f"/save: {file} cannot be written ({error.strerror})") from None
        self._note(f"the state is in {file}, {len(data):,} bytes")

    def _load(self, file: str) -> None:
        """Shows and continues the chat of a state file, which replaces the conversation and its system prompt."""
        path = _path("/load", file)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CommandError(f"/load: {file} cannot be read ({error.strerror})") from None
        state = self._runner.run(self._backend.load(data))
        self._conversation = ChatState(state=state)
        messages = state.get("messages", ())
        for message in messages if self._is_interactive else ():
            print_status(printable(f"{'' if message['role'] == 'assistant' else PROMPT}{message['content']}"))
        unseen = "" if messages else ", whose text cannot be shown"
        self._note(f"the conversation continues after the {state['tokens']} tokens of {file}{unseen}")

    def _note(self, text: str) -> None:
        if self._is_interactive:
            print_status(f"({text})")


def _path(command: str, file: str) -> Path:
    """Returns the path that a command names.

    Raises:
      CommandError: The command names none.
    """
    if not file:
        raise CommandError(f"{command}: name a file, such as {command} chat.state")
    return Path(file).expanduser()


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
    """Returns the reader of this process's stdin.

    On a terminal, readline edits the lines, and each is written to the history file immediately, whose errors are
    ignored. Without one, the prompt is left out.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return lambda prompt: input()
    history = platformdirs.user_state_path("roost", appauthor=False) / "chat_history"
    readline.set_history_length(_MAX_HISTORY)
    with contextlib.suppress(OSError):
        history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        history.touch(0o600)
        history.chmod(0o600)
        readline.read_history_file(history)

    def read(prompt: str) -> str:
        line = input(prompt)
        with contextlib.suppress(OSError):
            readline.write_history_file(history)
        return line

    return read


_TIMEOUT_S: Final = 24 * 3600.0
"""Timeout of a whole response: the server has its own limits, and the user can press Ctrl-C."""

_DONE: Final = b"[DONE]"


class ServerChat:
    """Streams `/v1/chat/completions`.

    Args:
      url: Address of the server.
      options: Options of the command.

    Raises:
      SettingsError: An option cannot be used.
    """

    def __init__(self, url: str, options: ChatSessionOptions) -> None:
        (address,) = server_addresses([url], options.api_key, options.settings)
        self._client = HttpClient(address, options.api_key, _TIMEOUT_S)
        self._model = options.model
        self._fields = options.sampling()

    async def start(self) -> str:
        """Requests the server's models, even if one is named, to find a wrong key or address early."""
        first = await first_model(self._client)
        self._model = self._model or first
        return self._model

    async def respond(self, messages: Sequence[ChatTurn], reply: Reply, state_id: str | None = None) -> None:
        state = {} if state_id is None else {"from_state": state_id}
        body = {"model": self._model, "messages": messages, "stream": True, **self._fields, **state}
        reader = _StreamReader(reply)
        await self._exchange(self._client.post("/v1/chat/completions", body, reader.feed))
        reader.end()

    async def save(self, reply: Reply) -> bytes:
        return await _states().save(self._client, self._exchange, reply.id)

    async def load(self, data: bytes) -> LoadedState:
        state: LoadedState = await _states().load(self._client, self._exchange, data)
        return state

    async def close(self) -> None:
        await self._client.close()

    async def _exchange(self, exchange: Awaitable[Response]) -> Response:
        try:
            response = await exchange
        except ClientError as error:
            raise CommandError(f"the server did not answer: {error}") from None
        if response.status != 200:
            raise CommandError(http_failure(response))
        return response


def _states() -> ModuleType:
    """Returns the client of the feature that saves states.

    Raises:
      CommandError: The feature does not exist.
    """
    found = next(modules_of("client"), None)
    if found is None:
        raise CommandError("this version saves no states")
    return found


class _StreamReader:
    """Parses a stream of chunks into a reply."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._events = EventParser()
        self._finish_reason: str | None = None
        self._error: str | None = None

    def feed(self, piece: bytes, now: float) -> None:
        for event in self._events.feed(piece):
            if event != _DONE and self._error is None:
                self._read(event)

    def end(self) -> None:
        """Ends the reply after the last piece.

        Raises:
          CommandError: The stream contained an error, or ended before the response did.
        """
        if self._error is None and self._finish_reason is None:
            self._error = "the stream ended before the response did"
        if self._error is not None:
            raise CommandError(self._error)
        self._reply.is_truncated = self._finish_reason == "length"

    def _read(self, event: bytes) -> None:
        try:
            chunk = orjson.loads(event)
            if "error" in chunk:
                self._error = " ".join(str(chunk["error"]["message"]).split())
                return
            self._reply.id = chunk.get("id") or self._reply.id
            for choice in chunk["choices"]:
                self._finish_reason = choice.get("finish_reason") or self._finish_reason
                if text := choice.get("delta", {}).get("content"):
                    self._reply.show(str(text))
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            self._error = "the server does not stream OpenAI's chunks; see --url"
