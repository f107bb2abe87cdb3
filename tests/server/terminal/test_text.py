"""Streamed text on a terminal, and in a pipe."""

import io
import sys
from collections.abc import Sequence

import pytest
from roost.server.terminal.text import StreamWriter, printable


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
