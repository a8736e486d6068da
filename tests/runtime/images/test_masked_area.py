"""The area of "only masked" inpainting against AUTOMATIC1111's rule, computed pixel by pixel."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sd2rt.runtime.images.masked_area import Area, masked_area, with_aspect

SIDES = st.integers(1, 90)


def searched(mask: NDArray[np.uint8], padding: int) -> tuple[int, int, int, int] | None:
    """The bounding box of the pixels that are not black, padded, one pixel after another."""
    height, width = mask.shape
    painted = [(x, y) for y in range(height) for x in range(width) if mask[y, x] != 0]
    if not painted:
        return None
    across, down = [x for x, _ in painted], [y for _, y in painted]
    return (
        max(min(across) - padding, 0),
        max(min(down) - padding, 0),
        min(max(across) + 1 + padding, width),
        min(max(down) + 1 + padding, height),
    )


def expanded(
    box: tuple[int, int, int, int], width: int, height: int, image: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Grow the side that is too short by one pixel after another: the later side first, then back from the edges."""
    sides = [list(box[0::2]), list(box[1::2])]
    lengths = [high - low for low, high in sides]
    axis = 1 if lengths[0] / lengths[1] > width / height else 0
    wanted = lengths[0] / (width / height) if axis == 1 else lengths[1] * (width / height)
    low, high = sides[axis]
    for turn in range(int(wanted - lengths[axis])):
        low, high = (low, high + 1) if turn % 2 == 0 else (low - 1, high)
    while high > image[axis]:
        low, high = low - 1, high - 1
    while low < 0:
        low, high = low + 1, high + 1
    sides[axis] = [low, min(high, image[axis])]
    return sides[0][0], sides[1][0], sides[0][1], sides[1][1]


@given(SIDES, SIDES, st.integers(0, 40), st.data())
def test_the_rule(width: int, height: int, padding: int, data: st.DataObject) -> None:
    mask = np.zeros((height, width), np.uint8)
    for _ in range(data.draw(st.integers(0, 3))):
        x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
        mask[y : y + data.draw(st.integers(1, 30)), x : x + data.draw(st.integers(1, 30))] = data.draw(
            st.integers(1, 255)
        )
    found, box = masked_area(mask, padding), searched(mask, padding)
    assert (None if found is None else found.box) == box
    if found is None or box is None:
        return
    wanted = data.draw(st.integers(1, 16)) * 64, data.draw(st.integers(1, 16)) * 64
    area = with_aspect(found, *wanted, width, height)
    assert area.box == expanded(box, *wanted, (width, height))
    assert 0 <= area.left < area.right <= width
    assert 0 <= area.top < area.bottom <= height
    assert area.left <= box[0] or area.right == width
    assert np.count_nonzero(mask) == np.count_nonzero(mask[area.top : area.bottom, area.left : area.right])


def test_an_area_grows_to_the_aspect_ratio() -> None:
    wide = Area(192, 240, 320, 272)
    assert with_aspect(wide, 512, 512, 512, 512).box == (192, 192, 320, 320)
    assert with_aspect(Area(0, 0, 128, 32), 512, 512, 512, 512).box == (0, 0, 128, 128)
    assert with_aspect(Area(384, 480, 512, 512), 512, 512, 512, 512).box == (384, 384, 512, 512)
    assert with_aspect(Area(0, 0, 512, 64), 512, 1024, 512, 256).box == (0, 0, 512, 256)
