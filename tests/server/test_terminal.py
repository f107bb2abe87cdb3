"""How answers come to a terminal, and to a pipe."""

import io

import pytest
from roost.server.terminal import AnswerWriter, printable


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("pieces", "written"),
    [(["a", "b"], "ab\n"), (["a\n"], "a\n"), (["a", "\n", ""], "a\n"), (["a\n\n"], "a\n\n"), ([], "\n"), ([""], "\n")],
)
def test_an_answer_ends_its_last_line_and_adds_nothing_else(pieces: list[str], written: str) -> None:
    out = io.StringIO()
    with AnswerWriter(out) as writer:
        for piece in pieces:
            writer.write(piece)
    assert out.getvalue() == written
    assert writer.text == "".join(pieces)


@pytest.mark.parametrize(("text", "written"), [("", ""), ("Hel", "Hel\n")])
def test_an_answer_that_fails_ends_a_line_that_it_has_begun(text: str, written: str) -> None:
    out = io.StringIO()
    with pytest.raises(KeyError), AnswerWriter(out) as writer:
        writer.write(text)
        raise KeyError
    assert out.getvalue() == written


def test_a_pipe_gets_every_character_and_a_terminal_none_that_controls_it() -> None:
    text = "a\x1b[31m\x00\r\x7f\x9bé\tb"
    pipe, terminal = io.StringIO(), Terminal()
    for out in (pipe, terminal):
        with AnswerWriter(out) as writer:
            writer.write(text)
    assert pipe.getvalue() == f"{text}\n"
    assert terminal.getvalue() == "a[31mé\tb\n"


def test_what_is_printable_stays_as_it_is() -> None:
    text = "Ünïcode 漢字 👩‍🚀 \N{RIGHT-TO-LEFT MARK}\n\t"
    assert printable(text) == text
