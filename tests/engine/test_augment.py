from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.augment import draw_shifts, shifted
from worker.engine.seeding import generator


@given(st.integers(-3, 3), st.integers(-3, 3))
def test_an_image_moves_down_and_right_and_zeros_come_in(down: int, right: int) -> None:
    images = torch.rand(2, 1, 5, 6) + 1

    moved = shifted(images, torch.tensor([[down, right], [0, 0]]), 3)

    assert torch.equal(moved[1], images[1])
    for row in range(5):
        for column in range(6):
            inside = 0 <= row - down < 5 and 0 <= column - right < 6
            wanted = images[0, 0, row - down, column - right] if inside else 0
            assert moved[0, 0, row, column] == wanted


def test_every_shift_is_drawn_about_as_often() -> None:
    shifts = draw_shifts(9_000, 1, generator(0, "test"))

    kinds, counts = torch.unique(shifts, dim=0, return_counts=True)

    assert len(kinds) == 9
    assert ((counts - 1_000).abs() < 150).all()
