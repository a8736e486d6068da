"""Representations of outputs in an interactive session and a notebook."""

from __future__ import annotations

import base64
import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from sd2rt.runtime.pipeline.output import Output


def colours(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (16, 8), (10 * index, 0, 0)) for index in range(count)]


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (Output(colours(1), [7]), "Output(1 image of 16x8, seeds=[7])"),
        (Output(colours(3), [7, 8, 9]), "Output(3 images of 16x8, seeds=[7, 8, 9])"),
        (
            Output([*colours(1), Image.new("RGB", (8, 8))], [1, 2]),
            "Output(2 images of 16x8 and 8x8, seeds=[1, 2])",
        ),
        (
            Output(np.zeros((9, 8, 8, 3), np.float32), list(range(9))),
            "Output(float32[9, 8, 8, 3], seeds=[0, 1, 2, 3, 4, 5, 6, 7, ...])",
        ),
    ],
)
def test_repr_is_one_line(output: Output, text: str) -> None:
    assert repr(output) == text


def test_a_notebook_shows_every_image_with_its_seed() -> None:
    images = colours(3)
    arrays = np.stack([np.asarray(image, np.float32) / 255 for image in images])
    for output in (Output(images, [4, 5, 6]), Output(arrays, [4, 5, 6])):
        html = output._repr_html_()
        assert html is not None
        encoded = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
        shown = [Image.open(BytesIO(base64.b64decode(text))) for text in encoded]
        assert [np.asarray(image).tolist() for image in shown] == [np.asarray(i).tolist() for i in images]
        assert re.findall(r"seed (\d+)", html) == ["4", "5", "6"]


def test_latents_are_no_picture() -> None:
    assert Output(np.zeros((1, 4, 8, 8), np.float32), [0])._repr_html_() is None
