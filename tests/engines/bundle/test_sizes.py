from __future__ import annotations

import pytest

from sd2rt.engines.bundle.sizes import check_side, parse_size
from sd2rt.engines.errors import RequestError


@pytest.mark.parametrize(
    ("text", "square", "size"),
    [
        ("512x768", False, (512, 768)),
        ("512X768", False, (512, 768)),
        ("0512x1", False, (512, 1)),
        ("512x768", True, (512, 768)),
        ("512", True, (512, 512)),
        ("0", True, (0, 0)),
        ("999999999x0", True, (999_999_999, 0)),
    ],
)
def test_size(text: str, square: bool, size: tuple[int, int]) -> None:
    assert parse_size(text, square=square) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "512x", "x512", "-64x64", "64x-64", "64x64x64", "64.0x64", "64*64", "64,64"),
        *("٦٤x64", "64x٦٤", " 64x64", "64x64\n", "64 x 64", "6_4x64", "1000000000x64"),
    ],
)
@pytest.mark.parametrize("square", [False, True])
def test_text_that_is_no_size(text: str, square: bool) -> None:
    with pytest.raises(ValueError, match="it is not a size"):
        parse_size(text, square=square)


@pytest.mark.parametrize("text", ["512", "9" * 10])
def test_one_number_is_no_size_where_it_was_not_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="it is not a size"):
        parse_size(text)


@pytest.mark.parametrize("side", [64, 72, 128, 520, 904, 4088, 4096])
def test_side(side: int) -> None:
    check_side("width", side)


@pytest.mark.parametrize(
    ("side", "near"),
    [
        *((0, "64"), (-64, "64"), (56, "64"), (63, "64"), (65, "64 or 72"), (500, "496 or 504")),
        *((4095, "4088 or 4096"), (4097, "4096"), (8192, "4096")),
    ],
)
def test_side_that_is_refused(side: int, near: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_side("height", side)
    assert str(caught.value) == f"height {side} is not a multiple of 8 from 64 to 4096: use {near}"


@pytest.mark.parametrize(
    ("side", "near"),
    [
        *((0, "64"), (-64, "64"), (63, "64"), (72, "64 or 128"), (500, "448 or 512"), (520, "512 or 576")),
        *((4088, "4032 or 4096"), (4097, "4096"), (8192, "4096")),
    ],
)
def test_side_that_a_bundle_of_an_earlier_version_refuses(side: int, near: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_side("height", side, 64)
    assert str(caught.value) == f"height {side} is not a multiple of 64 from 64 to 4096: use {near}"
