"""Parses server-sent events from pieces of bytes. httpx-sse needs httpx, whose HTTP parser is pure Python."""


class EventParser:
    """Returns the data of each complete event.

    Lines may end in LF, CR or CRLF. Comments and the names and ids of events are dropped.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._ended_in_cr = False
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """Returns the events that a piece completes. Pieces may end anywhere."""
        if self._ended_in_cr and piece:
            piece = piece.removeprefix(b"\n")
            self._ended_in_cr = False
        if b"\r" in piece:
            self._ended_in_cr = piece.endswith(b"\r")
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return [event for line in lines if (event := self._feed_line(line)) is not None]

    def _feed_line(self, line: bytes) -> bytes | None:
        """Returns the event that a line ends, if any: an empty line ends an event."""
        if line.startswith(b"data:"):
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            return None
        if line or not self._data:
            return None
        event = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        self._data = []
        return event
