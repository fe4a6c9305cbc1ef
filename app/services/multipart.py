"""The parts of a form (multipart/form-data, RFC 7578), piece by piece as they arrive."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import NamedTuple

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.core.errors import Malformed

_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{1,70}")
"""RFC 2046, 5.1.1."""


class Piece(NamedTuple):
    """Of the part of this name; `begins` is of its first one, which is empty."""

    name: str
    content: bytes
    begins: bool = False


def boundary_of(content_type: str) -> bytes:
    """Raises Malformed."""
    found = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not _BOUNDARY.fullmatch(found):
        raise Malformed("The Content-Type of a form must say its boundary, of at most 70 characters.")
    return found


async def parts(chunks: AsyncIterator[bytes], boundary: bytes) -> AsyncIterator[Piece]:
    """Raises Malformed when it is no such form, or breaks off."""
    reader = _Reader()
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": reader.begin,
            "on_header_field": reader.header,
            "on_header_value": reader.value,
            "on_header_end": reader.header_over,
            "on_headers_finished": reader.headers_over,
            "on_part_data": reader.data,
            "on_end": reader.end,
        },
    )
    async for chunk in chunks:
        try:
            parser.write(chunk)
        except MultipartParseError as error:
            raise Malformed(f"The body is no such form as its Content-Type says: {error}.") from error
        for piece in reader.taken():
            yield piece
    if not reader.ended:
        raise Malformed("The form breaks off: its last boundary is missing.")


class _Reader:
    """What the parser found and nobody has taken yet, of one chunk at most."""

    def __init__(self) -> None:
        self.ended = False
        self._name = ""
        self._field, self._value = b"", b""
        self._found: list[Piece] = []

    def taken(self) -> list[Piece]:
        found, self._found = self._found, []
        return found

    def begin(self) -> None:
        self._name = ""

    def header(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_over(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._name = parse_options_header(self._value)[1].get(b"name", b"").decode(errors="replace")
        self._field, self._value = b"", b""

    def headers_over(self) -> None:
        self._found.append(Piece(self._name, b"", begins=True))

    def data(self, data: bytes, start: int, end: int) -> None:
        self._found.append(Piece(self._name, data[start:end]))

    def end(self) -> None:
        self.ended = True
