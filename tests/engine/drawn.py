"""Pictures as they are drawn: which texts they bear and where."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import BboxBase

_SLACK = 1.0
"""Pixels by which frames of texts may lie over each other or the edge: letters do not fill them."""


class Drawn:
    """The figure that was drawn last, with the frame of each text in pixels."""

    figure: Figure
    texts: dict[Text, BboxBase]

    @property
    def words(self) -> list[str]:
        return [text.get_text() for text in self.texts]

    @property
    def headline(self) -> str:
        return self.figure.get_suptitle()

    def assert_is_legible(self) -> None:
        """Every text lies within the picture, and none upon another."""
        whole = self.figure.bbox
        outside = [text.get_text() for text, frame in self.texts.items() if not _holds(whole, frame)]
        assert not outside, f"over the edge: {outside}"
        pairs = combinations(self.texts.items(), 2)
        over = [(one.get_text(), other.get_text()) for (one, a), (other, b) in pairs if _overlap(a, b)]
        assert not over, f"upon each other: {over}"


def _holds(whole: BboxBase, frame: BboxBase) -> bool:
    across = whole.x0 - _SLACK <= frame.x0 and frame.x1 <= whole.x1 + _SLACK
    return bool(across and whole.y0 - _SLACK <= frame.y0 and frame.y1 <= whole.y1 + _SLACK)


def _overlap(a: BboxBase, b: BboxBase) -> bool:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return bool(width > _SLACK and height > _SLACK)


@contextmanager
def watched() -> Iterator[Drawn]:
    """Looks on while pictures are drawn: the functions that draw them give bytes alone."""
    drawn = Drawn()
    draw_figure, draw_text = Figure.draw, Text.draw

    def figure(self: Figure, renderer: Any) -> None:
        drawn.figure, drawn.texts = self, {}
        draw_figure(self, renderer)

    def text(self: Text, renderer: Any) -> None:
        draw_text(self, renderer)
        if self.get_visible() and self.get_text().strip():
            drawn.texts[self] = Text.get_window_extent(self, renderer)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Figure, "draw", figure)
        patched.setattr(Text, "draw", text)
        yield drawn
