"""Text on the terminal: streamed output, and characters that it cannot show."""

import sys
import unicodedata
from types import TracebackType
from typing import Final

_SHOWN_CONTROLS: Final = "\n\t"


def printable(text: str) -> str:
    """Returns a text without control characters, except newline and tab.

    Text of a model or a server must not move the cursor, set the window's title or type for the user.
    """
    return "".join(char for char in text if char in _SHOWN_CONTROLS or unicodedata.category(char) != "Cc")


def print_status(text: str) -> None:
    """Prints a line to stderr, since stdout is for generated text only."""
    print(text, file=sys.stderr, flush=True)


class StreamWriter:
    """Writes generated text to stdout as it arrives. The `with` block ends the last line.

    A terminal gets the text without control characters, a pipe the text itself.

    Attributes:
      text: Text so far, unchanged.
    """

    def __init__(self) -> None:
        self._out = sys.stdout
        self._is_terminal = self._out.isatty()
        self._ends_line = False
        self.text = ""

    def write(self, text: str) -> None:
        """Writes the next piece."""
        self.text += text
        self._show(printable(text) if self._is_terminal else text)

    def _show(self, text: str) -> None:
        if text:
            self._out.write(text)
            self._out.flush()
            self._ends_line = text.endswith("\n")

    def __enter__(self) -> "StreamWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        has_line = bool(self.text) or error is None
        if has_line and not self._ends_line and not isinstance(error, BrokenPipeError):
            self._show("\n")


def replace_unencodable_characters() -> None:
    """Makes stdin, stdout and stderr replace characters that their encoding lacks, instead of raising."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")
