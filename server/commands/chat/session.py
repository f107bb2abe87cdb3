"""A conversation: messages, responses and commands."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from ...terminal.failure import INTERRUPTED_STATUS, CommandError
from ...terminal.text import StreamWriter, print_status, printable
from .backend import Backend, Message
from .line_input import ReadLine, read_message

HELP: Final = '''\
/system TEXT  set the system prompt; without TEXT, remove it
/retry        answer the last question anew
/reset        forget the conversation, but not the system prompt
/help         show this
/exit         leave, as Ctrl-D does
"""           begins and ends a text of several lines
Ctrl-C        stop the answer; what there is of it stays in the conversation'''


class Session:
    """Reads messages and commands until the input ends.

    Args:
      runner: Event loop of the backend.
      backend: Backend that responds.
      read_line: Reads a line of the user.
      is_interactive: Whether a user is at the terminal. If not, the first error ends the session.
      system: System prompt; empty sends none.
    """

    def __init__(
        self, runner: asyncio.Runner, backend: Backend, read_line: ReadLine, *, is_interactive: bool, system: str = ""
    ) -> None:
        self._runner = runner
        self._backend = backend
        self._read_line = read_line
        self._is_interactive = is_interactive
        self._system = system
        self._turns: Sequence[Message] = ()
        self._before: Sequence[Message] = ()
        self._last_message: str | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: print_status(HELP),
            "/system": self._set_system,
            "/retry": self._retry,
            "/reset": self._reset,
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
            self._send(text, self._turns)

    def _send(self, message: str, before: Sequence[Message]) -> None:
        """Responds to a message that follows `before`. Both join the conversation once there is a response."""
        self._last_message, self._before = message, before
        system = [Message("system", self._system)] if self._system else []
        messages = [*before, Message("user", message)]
        writer = StreamWriter()
        try:
            with writer:
                is_truncated = self._runner.run(
                    _interruptible(self._backend.respond([*system, *messages], writer.write))
                )
        except asyncio.CancelledError:
            if not self._is_interactive:
                raise KeyboardInterrupt from None
            print_status("(stopped)" if writer.text else "\n(stopped)")
            is_truncated = False
        if writer.text:
            self._turns = [*messages, Message("assistant", writer.text)]
        if is_truncated:
            print_status("(cut off at the limit of tokens; see --max-tokens)")

    def _set_system(self, text: str) -> None:
        self._system = text
        self._note("the system prompt is set" if text else "there is no system prompt")

    def _retry(self, _: str) -> None:
        if self._last_message is None:
            raise CommandError("/retry: there is no question yet")
        self._send(self._last_message, self._before)

    def _reset(self, _: str) -> None:
        self._turns, self._last_message = (), None
        self._note("the conversation is forgotten")

    def _note(self, text: str) -> None:
        if self._is_interactive:
            print_status(f"({text})")


async def _interruptible[T](work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work`; Ctrl-C cancels it.

    `asyncio.Runner` handles SIGINT in a plain signal handler, which does not wake a loop that is about to wait for
    events: the answer would go on until its next token. A handler of the loop's own wakes it.

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
