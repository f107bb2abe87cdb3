"""Text on the terminal: streamed answers, and the lines that a user types."""

import sys
import unicodedata
from types import TracebackType
from typing import Final

_SHOWN_CONTROLS: Final = "\n\t"


def printable(text: str) -> str:
    """Returns the text without control characters but newline and tab: what a model or a server says must not move the
    cursor, set the window's title or answer for the user."""
    return "".join(char for char in text if char in _SHOWN_CONTROLS or unicodedata.category(char) != "Cc")


class AnswerWriter:
    """Writes an answer to stdout as it comes. At the end of the `with` block it has ended with a newline.

    A pipe gets the answer as it is, a terminal without control characters.

    Attributes:
      text: the answer so far, as it is.
    """

    def __init__(self) -> None:
        self._out = sys.stdout
        self._is_terminal = self._out.isatty()
        self._ends_line = False
        self.text = ""

    def write(self, text: str) -> None:
        """Writes the next piece."""
        self.text += text
        shown = printable(text) if self._is_terminal else text
        if shown:
            self._out.write(shown)
            self._out.flush()
            self._ends_line = shown.endswith("\n")

    def __enter__(self) -> "AnswerWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        has_line = bool(self.text) or error is None
        if has_line and not self._ends_line and not isinstance(error, BrokenPipeError):
            self._out.write("\n")
            self._out.flush()


def replace_what_cannot_be_encoded() -> None:
    """Lets stdin, stdout and stderr replace characters that their encoding lacks, where they would raise."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")
