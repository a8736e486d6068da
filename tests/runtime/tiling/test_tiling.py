"""Cutting arrays into tiles and blending them: nothing is lost, and there are no seams."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sd2rt.runtime.tiling.tiling import Box, Tiling

SIDES = st.integers(1, 160)
property_test = settings(deadline=None, max_examples=60)


@st.composite
def tilings(draw: st.DrawFn, *, any_overlap: bool = False) -> tuple[Tiling, dict[str, int]]:
    multiple = draw(st.sampled_from((1, 4, 8)))
    tile = draw(st.integers(2 * multiple, 64))
    side = tile // multiple * multiple
    # With hundreds of tiles on one element, the rounding of their sum exceeds 1e-6.
    overlap = draw(st.integers(0, side - multiple if any_overlap else side // 2))
    options = {
        "height": draw(SIDES),
        "width": draw(SIDES),
        "tile": tile,
        "overlap": overlap,
        "multiple": multiple,
    }
    return Tiling(**options), options


def _counts(tiling: Tiling) -> NDArray[np.int64]:
    counts = np.zeros((tiling.height, tiling.width), np.int64)
    for box in tiling.boxes:
        box.cut(counts)[...] += 1
    return counts


@property_test
@given(tilings(any_overlap=True))
def test_boxes_cover_the_array_and_stay_inside(drawn: tuple[Tiling, dict[str, int]]) -> None:
    tiling, options = drawn
    for box in tiling.boxes:
        assert 0 <= box.top <= tiling.height - box.height
        assert 0 <= box.left <= tiling.width - box.width
    assert _counts(tiling).min() >= 1
    assert len({(box.top, box.left) for box in tiling.boxes}) == len(tiling.boxes)
    multiple = options["multiple"]
    side = options["tile"] // multiple * multiple
    for length, starts, sides in (
        (tiling.height, sorted({b.top for b in tiling.boxes}), {b.height for b in tiling.boxes}),
        (tiling.width, sorted({b.left for b in tiling.boxes}), {b.width for b in tiling.boxes}),
    ):
        assert sides == {min(length, side)}
        assert all(start % multiple == 0 for start in starts[:-1])
        assert starts[-1] % multiple == 0 or length % multiple
        steps = [after - start for start, after in itertools.pairwise(starts)]
        assert all(side - step >= options["overlap"] for step in steps)
        if length % multiple == 0 and steps:
            assert max(steps) - min(steps) <= multiple


@property_test
@given(tilings(), st.sampled_from((1, 2, 3)))
def test_a_constant_comes_back(drawn: tuple[Tiling, dict[str, int]], factor: int) -> None:
    tiling, _ = drawn
    # The blend of ones is the sum of the weights.
    blended = tiling.blend(
        (np.ones((1, box.height * factor, box.width * factor), np.float32) for box in tiling.boxes), factor
    )
    assert blended.shape == (1, tiling.height * factor, tiling.width * factor)
    assert blended.dtype == np.float32
    np.testing.assert_allclose(blended, 1, rtol=0, atol=1e-6)


@property_test
@given(tilings(), st.sampled_from((1, 2)))
def test_weights_sum_to_one(drawn: tuple[Tiling, dict[str, int]], factor: int) -> None:
    tiling, _ = drawn
    total = np.zeros((tiling.height * factor, tiling.width * factor))
    for box, weights in zip(tiling.boxes, tiling.weights(factor), strict=True):
        assert weights.shape == (box.height * factor, box.width * factor)
        box.scaled(factor).cut(total)[...] += weights
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-6)


@property_test
@given(tilings(), st.integers(0, 1000))
def test_what_is_only_cut_comes_back(drawn: tuple[Tiling, dict[str, int]], seed: int) -> None:
    tiling, _ = drawn
    y, x = np.mgrid[: tiling.height, : tiling.width]
    phases = np.random.default_rng(seed).uniform(0, 6, 3)
    smooth = np.stack([np.sin(x / 40 + p) * np.cos(y / 30 - p) for p in phases]).astype(np.float32)
    blended = tiling.blend(box.cut(smooth) for box in tiling.boxes)
    np.testing.assert_allclose(blended, smooth, rtol=0, atol=1e-5)


@property_test
@given(tilings(), st.sampled_from((1, 4)))
def test_tiles_that_differ_fade_into_each_other(drawn: tuple[Tiling, dict[str, int]], factor: int) -> None:
    tiling, options = drawn
    starts = sorted({box.left for box in tiling.boxes})
    # Columns of tiles alternate between 0 and 1, which needs the steepest blend.
    blended = tiling.blend(
        (
            np.full((1, box.height * factor, box.width * factor), starts.index(box.left) % 2, np.float32)
            for box in tiling.boxes
        ),
        factor,
    )
    assert blended.min() >= -1e-6
    assert blended.max() <= 1 + 1e-6
    if options["overlap"]:
        # The steepest step of a raised cosine is pi / 2 times that of a straight line; two fades may coincide.
        assert np.abs(np.diff(blended)).max(initial=0) <= 2 * np.pi / 2 / (options["overlap"] * factor) + 1e-6


def test_a_tile_alone_is_returned_to_the_bit() -> None:
    array = np.random.default_rng(0).standard_normal((3, 40, 64)).astype(np.float32)
    tiling = Tiling(40, 64, tile=64, overlap=16)
    assert tiling.boxes == (Box(0, 0, 40, 64),)
    assert np.array_equal(tiling.blend([array]), array)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    tiling = Tiling(8, 48, tile=32, overlap=8)
    tiles = [np.zeros((1, 8, 32), np.float32) for _ in tiling.boxes]
    tiles[0][0, 4, 31] = bad
    assert not np.isfinite(tiling.blend(tiles)).all()


def test_an_axis_is_cut_evenly() -> None:
    tiling = Tiling(96, 320, tile=130, overlap=16)
    assert tiling.boxes == (Box(0, 0, 96, 128), Box(0, 96, 96, 128), Box(0, 192, 96, 128))


def test_an_array_that_is_no_multiple_ends_with_its_last_tile() -> None:
    assert [box.top for box in Tiling(83, 8, tile=32, overlap=8).boxes] == [0, 16, 32, 51]


def test_results_are_taken_one_at_a_time() -> None:
    tiling = Tiling(64, 96, tile=32, overlap=8)
    tiles: list[weakref.ref[NDArray[np.float32]]] = []

    def results() -> Iterator[NDArray[np.float32]]:
        for box in tiling.boxes:
            # When the next tile is made, at most the previous one still exists.
            assert sum(tile() is not None for tile in tiles) <= 1
            tile = np.ones((1, box.height, box.width), np.float32)
            tiles.append(weakref.ref(tile))
            yield tile
            del tile

    tiling.blend(results())
    assert len(tiles) == len(tiling.boxes)


@pytest.mark.parametrize(("tile", "overlap"), [(7, 0), (32, 25), (32, 32), (32, -1), (0, 0)])
def test_tiles_that_cannot_be_made_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="tile"):
        Tiling(100, 100, tile, overlap)


def test_results_that_do_not_fit_are_refused() -> None:
    tiling = Tiling(8, 48, tile=32, overlap=8)
    tile = np.zeros((1, 8, 32), np.float32)
    with pytest.raises(ValueError, match="shorter"):
        tiling.blend([tile])
    with pytest.raises(ValueError, match="longer"):
        tiling.blend([tile, tile, tile])
    with pytest.raises(ValueError, match=r"shape \[1, 8, 31\], expected \[1, 8, 32\]"):
        tiling.blend([tile, tile[:, :, :31]])
