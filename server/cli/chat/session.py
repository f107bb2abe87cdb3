"""The conversation: questions, answers and commands."""

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from ...terminal.failure import CommandError
from ...terminal.text import AnswerWriter, printable
from .backend import Backend, Message
from .line_input import ReadLine, read_text

_INTERRUPTED: Final = 130
"""The exit status of a program that Ctrl-C has ended."""

HELP: Final = '''\
/system TEXT  set the system prompt; without TEXT, remove it
/retry        answer the last question anew
/reset        forget the conversation, but not the system prompt
/help         show this
/exit         leave, as Ctrl-D does
"""           begins and ends a text of several lines
Ctrl-C        stop the answer; what there is of it stays in the conversation'''


class Session:
    """Reads texts, and answers or obeys them until the input ends.

    Args:
      runner: of the event loop of `backend`.
      read_line: gives what the user types.
      is_interactive: whether a user watches. If not, the first error ends the session.
      system: the system prompt; an empty one is none.
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
        self._question: str | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: say(HELP),
            "/system": self._set_system,
            "/retry": self._retry,
            "/reset": self._reset,
        }

    def run(self) -> int:
        """Returns the exit status.

        Raises:
          CommandError: a question has no answer, and nobody is there to ask another.
        """
        while True:
            try:
                text = read_text(self._read_line)
                if text is None or text.strip() in ("/exit", "/quit", "/bye"):
                    if text is None and self._is_interactive:
                        say("")
                    return 0
                self._take(text)
            except KeyboardInterrupt:
                if not self._is_interactive:
                    return _INTERRUPTED
                say("\n(Ctrl-D leaves)")
            except CommandError as error:
                if not self._is_interactive:
                    raise
                say(f"roost: {printable(str(error))}")

    def _take(self, text: str) -> None:
        if text.startswith("/") and "\n" not in text:
            name, _, argument = text.strip().partition(" ")
            if name not in self._commands:
                raise CommandError(
                    f"{name} is no command; /help lists them (put a space in front of a text that begins with /)"
                )
            self._commands[name](argument.strip())
        elif text.strip():
            self._ask(text, self._turns)

    def _ask(self, question: str, before: Sequence[Message]) -> None:
        """Answers a question behind what was said before. It becomes a part of the conversation with its answer."""
        self._question, self._before = question, before
        system = [Message("system", self._system)] if self._system else []
        asked = [*before, Message("user", question)]
        writer = AnswerWriter()
        try:
            with writer:
                is_cut_off = self._runner.run(_interruptible(self._backend.answer([*system, *asked], writer.write)))
        except asyncio.CancelledError:
            if not self._is_interactive:
                raise KeyboardInterrupt from None
            say("(stopped)" if writer.text else "\n(stopped)")
            is_cut_off = False
        if writer.text:
            self._turns = [*asked, Message("assistant", writer.text)]
        if is_cut_off:
            say("(cut off at the limit of tokens; see --max-tokens)")

    def _set_system(self, text: str) -> None:
        self._system = text
        self._note("the system prompt is set" if text else "there is no system prompt")

    def _retry(self, _: str) -> None:
        if self._question is None:
            raise CommandError("/retry: there is no question yet")
        self._ask(self._question, self._before)

    def _reset(self, _: str) -> None:
        self._turns, self._question = (), None
        self._note("the conversation is forgotten")

    def _note(self, text: str) -> None:
        if self._is_interactive:
            say(f"({text})")


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


def say(text: str) -> None:
    """Prints to stderr: stdout has answers only."""
    print(text, file=sys.stderr, flush=True)
