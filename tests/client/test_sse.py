"""Events come out the same however the bytes are cut, and as the standard reads them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from secateur_client.sse import Parser, ServerSentEvent

LOG = (
    b"\xef\xbb\xbf: hello\n\n"
    b"id: 1\nevent: queued\ndata: {}\n\n"
    b"retry: 10\r\ndata:two\r\ndata: lines\r\n\r\n"
    b"event: nothing\n\n"
    b"data: \xc3\xa9\xe2\x82\xac\nunknown: x\n\n"
    b"event: end\rdata\r\r\n"
    b"data: never finished"
)
EVENTS = [
    ServerSentEvent("queued", "{}"),
    ServerSentEvent("message", "two\nlines"),
    ServerSentEvent("message", "é€"),
    ServerSentEvent("end", ""),
]


@given(cuts=st.sets(st.integers(1, len(LOG) - 1)))
def test_cut_anywhere_the_events_are_the_same(cuts: set[int]) -> None:
    parser, ends = Parser(), sorted(cuts | {len(LOG)})
    pieces = [LOG[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    assert [event for piece in pieces for event in parser.feed(piece)] == EVENTS


def test_an_event_is_told_as_soon_as_it_is_whole() -> None:
    parser = Parser()
    assert [*parser.feed(b"data: 1\n")] == []
    assert [*parser.feed(b"\n")] == [ServerSentEvent("message", "1")]
