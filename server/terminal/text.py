"""Text on the terminal: streamed output, and characters that it cannot show."""

import re
import shutil
import sys
import textwrap
import unicodedata
from types import TracebackType
from typing import Final

from rich.cells import cell_len

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

    A terminal gets the text without control characters and wrapped between words, a pipe the text itself.

    Attributes:
      text: Text so far, unchanged.
    """

    def __init__(self) -> None:
        self._out = sys.stdout
        self._wrap = WordWrap() if self._out.isatty() else None
        self._ends_line = False
        self.text = ""

    def write(self, text: str) -> None:
        """Writes the next piece."""
        self.text += text
        self._show(text if self._wrap is None else self._wrap.add(printable(text)))

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


class WordWrap:
    """Breaks lines of text between words. The beginning of a word that turns out too long is moved to the next line."""

    def __init__(self) -> None:
        self._column = 0
        self._word = ""

    def add(self, text: str) -> str:
        """Returns the characters to write for the next piece of text."""
        return "".join(map(self._placed, re.findall(r"\s|\S+", text)))

    def _placed(self, part: str) -> str:
        """Returns the characters to write for white space or a part of a word."""
        columns = shutil.get_terminal_size().columns - 1  # in the last column, terminals handle a backspace differently
        if part.isspace():
            is_break = part == "\n" or self._column >= columns
            self._word, self._column = "", 0 if is_break else self._column + 1
            return "\n" if is_break else part
        written, self._word = cell_len(self._word), self._word + part
        end = self._column + cell_len(part)
        if end > columns and self._column > written:
            self._column = cell_len(self._word)
            return "\b" * written + " " * written + "\n" + self._word
        self._column = end if end <= columns else end % columns  # the terminal cuts a word longer than a line
        return part


def replace_unencodable_characters() -> None:
    """Makes stdin, stdout and stderr replace characters that their encoding lacks, instead of raising."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")


def hang(line: str, indent: int) -> str:
    """Returns a line wrapped between words for a terminal on stderr, later lines indented; unchanged for a pipe."""
    if not sys.stderr.isatty():
        return line
    columns = max(shutil.get_terminal_size().columns, 2 * indent)
    return textwrap.fill(line, columns, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
