"""Parser of server-sent events."""

import pytest
from roost.server.client.openai_server import EventParser


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
def test_events_are_the_same_wherever_they_are_cut(line_end: bytes) -> None:
    lines = [
        b": ping",
        b"",
        b"event: x",
        b"data: one",
        b"",
        b"data:two",
        b"data: lines",
        b"id: 1",
        b"",
        b"data: no end",
    ]
    stream = line_end.join(lines)
    for first in range(len(stream) + 1):
        for second in range(first, len(stream) + 1):
            parser = EventParser()
            pieces = stream[:first], stream[first:second], stream[second:]
            assert [data for piece in pieces for data in parser.feed(piece)] == [b"one", b"two\nlines"]
