"""Server-sent events out of bytes, however these are cut (https://html.spec.whatwg.org/#event-stream-interpretation)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_MARK = b"\xef\xbb\xbf"


class ServerSentEvent(NamedTuple):
    event: str
    data: str


class Parser:
    """Fed with pieces, it gives the events that they complete. What a broken connection leaves unfinished is none."""

    def __init__(self) -> None:
        self._rest = b""
        self._begun = False
        self._event = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> Iterator[ServerSentEvent]:
        for line in self._lines(piece):
            if line:
                self._field(line)
            elif self._data:
                yield ServerSentEvent(self._event or "message", "\n".join(self._data))
                self._event, self._data = "", []
            else:
                self._event = ""

    def _lines(self, piece: bytes) -> Iterator[str]:
        text = self._rest + piece
        if not self._begun and len(text) >= len(_MARK):
            text, self._begun = text.removeprefix(_MARK), True
        lines = text.splitlines(keepends=True)
        # Of a line that ends with \r alone, the next piece may begin with its \n.
        self._rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        for line in lines:
            yield line.rstrip(b"\r\n").decode(errors="replace")

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
