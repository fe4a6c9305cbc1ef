"""How much room words take on a picture, and which the font can write. Sizes are in points, widths in inches."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable
from functools import cache

from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import LoadFlags

FONT = "DejaVu Sans"
LINE = 0.2
"""The height of a headline's line."""

HEADLINE = 11.0
_SMALL = 8.0
_BESIDE = 0.55
"""In a legend, what an entry takes beside its words."""

_SUBPIXELS = 64
_HINTED = 1.03
"""Letters are set on whole pixels when they are drawn: a line comes out a little wider than by its outlines."""

_TALLEST = 2.0
"""Times the size: accents that are piled up higher would be drawn over other lines."""


def writable(name: str | None) -> str | None:
    """The name, or None of one that is blank, or of which the font lacks a letter: boxes name nothing."""
    bare = (name or "").strip()
    if not bare or not {ord(letter) for letter in bare} <= _letters():
        return None
    return bare if 0 < _extent(bare, HEADLINE)[1] * 72 <= _TALLEST * HEADLINE else None


def headline(lines: Iterable[str | None], width: float) -> str:
    """Those that there are, each on as many lines as it takes."""
    return "\n".join(wrapped(line, width, HEADLINE) for line in lines if line)


def wrapped(text: str, width: float, size: float) -> str:
    """Broken between words, and within one that is wider than a line."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if width_of(longer, size) <= width:
            lines[-1] = longer
        else:
            *whole, last = _pieces(word, width, size)
            lines += [*whole, last]
    return "\n".join(line for line in lines if line)


def _pieces(word: str, width: float, size: float) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and width_of(pieces[-1] + letter, size) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def cut(text: str, width: float, size: float) -> str:
    """On one line: its beginning, where all of it is too wide."""
    if width_of(text, size) <= width:
        return text

    def shown(end: int) -> str:
        return text[:end].rstrip() + "…"

    ends = range(1, len(text))
    return shown(bisect(ends, width, key=lambda end: width_of(shown(end), size)))


def columns(labels: Iterable[str], width: float, most: int) -> int:
    """Of a legend with these labels, which may have no more than `most`."""
    widest = max(width_of(label, _SMALL) for label in labels)
    return max(1, min(most, int(width / (widest + _BESIDE))))


def width_of(text: str, size: float) -> float:
    """Of its widest line."""
    return max(_extent(line, size)[0] for line in text.split("\n")) * _HINTED


def _extent(text: str, size: float) -> tuple[float, float]:
    """Width and height in inches."""
    font = get_font(_path())
    font.set_size(size, 72)
    font.set_text(text, 0.0, flags=LoadFlags.NO_HINTING)
    width, height = font.get_width_height()
    return width / _SUBPIXELS / 72, height / _SUBPIXELS / 72


@cache
def _letters() -> frozenset[int]:
    return frozenset(get_font(_path()).get_charmap())


@cache
def _path() -> str:
    return findfont(FontProperties(family=FONT))
