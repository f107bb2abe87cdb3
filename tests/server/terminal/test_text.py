"""Streamed text on a terminal, and in a pipe."""

import io
import sys
from collections.abc import Sequence

import pytest
from roost.server.terminal.text import StreamWriter, hang, printable


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def write(monkeypatch: pytest.MonkeyPatch, out: io.StringIO, pieces: Sequence[str], *, fails: bool = False) -> str:
    """Returns the output of a stream of pieces."""
    monkeypatch.setattr(sys, "stdout", out)
    with StreamWriter() as writer:
        for piece in pieces:
            writer.write(piece)
        assert writer.text == "".join(pieces)
        if fails:
            raise KeyError
    return out.getvalue()


@pytest.mark.parametrize(
    ("pieces", "written"),
    [(["a", "b"], "ab\n"), (["a\n"], "a\n"), (["a", "\n", ""], "a\n"), (["a\n\n"], "a\n\n"), ([], "\n"), ([""], "\n")],
)
def test_a_stream_ends_its_last_line_and_adds_nothing_else(
    monkeypatch: pytest.MonkeyPatch, pieces: list[str], written: str
) -> None:
    assert write(monkeypatch, io.StringIO(), pieces) == written


@pytest.mark.parametrize(("text", "written"), [("", ""), ("Hel", "Hel\n")])
def test_a_failed_stream_ends_an_open_line(monkeypatch: pytest.MonkeyPatch, text: str, written: str) -> None:
    out = io.StringIO()
    with pytest.raises(KeyError):
        write(monkeypatch, out, [text], fails=True)
    assert out.getvalue() == written


def test_a_pipe_gets_every_character_and_a_terminal_none_that_controls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a\x1b[31m\x00\r\x7f\x9bé\tb"
    assert write(monkeypatch, io.StringIO(), [text]) == f"{text}\n"
    assert write(monkeypatch, Terminal(), [text]) == "a[31mé\tb\n"


def test_what_is_printable_stays_as_it_is() -> None:
    text = "Ünïcode 漢字 👩‍🚀 \N{RIGHT-TO-LEFT MARK}\n\t"
    assert printable(text) == text


@pytest.mark.parametrize(
    ("pieces", "written"),
    [
        (["one two th", "ree four"], "one two th\b\b  \nthree four\n"),
        (["a line of10", " b"], "a line \nof10 b\n"),
        (["0123", "456789", " b"], "0123456789\nb\n"),
        (["012345678901234 b c d"], "012345678901234 b c \nd\n"),
        (["漢字漢字 漢字"], "漢字漢字 \n漢字\n"),
        (["a\n  b\n"], "a\n  b\n"),
    ],
)
def test_a_terminal_breaks_lines_between_words(
    monkeypatch: pytest.MonkeyPatch, pieces: list[str], written: str
) -> None:
    monkeypatch.setenv("COLUMNS", "11")
    assert write(monkeypatch, Terminal(), pieces) == written
    assert write(monkeypatch, io.StringIO(), pieces) == "".join(pieces).rstrip("\n") + "\n"


def test_the_banner_hangs_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    line = "slots       8, 55.5 KiB of state each, 444.0 KiB together"
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert hang(line, 12) == line
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert hang(line, 12).splitlines() == ["slots       8, 55.5 KiB of state each,", "            444.0 KiB together"]
