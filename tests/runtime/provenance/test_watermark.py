"""The watermark against invisible-watermark 0.2.0, byte for byte."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.recording.pictures import natural, random_pixels, saturated
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.provenance.watermark import MESSAGE, bits_that_match, embed, read

Pixels = NDArray[np.uint8]
SIZES = [(256, 256), (512, 512), (1080, 720), (257, 259), (770, 514), (333, 301), (64, 1030), (8, 30001)]


@cache
def peer() -> Any:
    """The class of invisible-watermark that does the work.

    Its package imports PyTorch for another method, so the module is loaded alone.
    """
    pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    pytest.importorskip("pywt", reason="PyWavelets is not installed")
    package = importlib.util.find_spec("imwatermark")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("invisible-watermark is not installed: pip install --no-deps invisible-watermark==0.2.0")
    file = Path(package.submodule_search_locations[0]) / "maxDct.py"
    spec = importlib.util.spec_from_file_location("imwatermark_max_dct", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "imwatermark" not in sys.modules
    return module.EmbedMaxDct


def peer_embed(rgb: Pixels) -> Pixels:
    bits = list(np.unpackbits(np.frombuffer(MESSAGE, np.uint8)))
    # The package writes into its wavelet in double precision, then casts: it warns of what it wraps.
    with np.errstate(invalid="ignore"):
        bgr = peer()(bits, wmLen=32).encode(np.ascontiguousarray(rgb[..., ::-1]))
    return np.asarray(bgr)[..., ::-1]


def peer_read(rgb: Pixels) -> bytes:
    bits = peer()(wmLen=32).decode(np.ascontiguousarray(rgb[..., ::-1]))
    return np.packbits(bits).tobytes()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("make", [random_pixels, natural, saturated])
def test_equals_invisible_watermark(make: Any, size: tuple[int, int]) -> None:
    picture = make(*size, seed=sum(size))
    marked = embed(picture)
    np.testing.assert_array_equal(marked, peer_embed(picture))
    assert read(marked) == peer_read(marked)
    assert read(picture) == peer_read(picture)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 254, 255])
def test_equals_invisible_watermark_on_flat_pictures(value: int) -> None:
    for channel in range(3):
        picture = np.full((256, 260, 3), 255 - value, np.uint8)
        picture[..., channel] = value
        marked = embed(picture)
        np.testing.assert_array_equal(marked, peer_embed(picture))
        assert read(marked) == peer_read(marked)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(256, 400),
    st.integers(256, 400),
    st.integers(0, 2**32 - 1),
    st.sampled_from([random_pixels, natural, saturated]),
)
def test_equals_invisible_watermark_on_any_size(width: int, height: int, seed: int, make: Any) -> None:
    picture = make(width, height, seed=seed)
    marked = embed(picture)
    np.testing.assert_array_equal(marked, peer_embed(picture))
    assert read(marked) == peer_read(marked)


@pytest.mark.parametrize("size", [(512, 512), (768, 512), (1080, 720)], ids=str)
def test_is_read_back(size: tuple[int, int]) -> None:
    picture = natural(*size, seed=3)
    assert read(picture) != MESSAGE
    marked = embed(picture)
    assert read(marked) == MESSAGE
    assert bits_that_match(marked) == 32
    # A step of 36 in one of 16 coefficients, spread over four pixels.
    assert np.abs(marked.astype(int) - picture).mean() < 3


def test_the_picture_itself_is_not_changed() -> None:
    picture = natural(256, 256, seed=1)
    before = picture.copy()
    embed(picture)
    np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize("size", [(255, 256), (64, 64), (128, 511), (30_000, 7)], ids=str)
def test_small_pictures_are_refused(size: tuple[int, int]) -> None:
    picture = natural(*size, seed=1)
    with pytest.raises(
        RequestError, match=f"at least 256x256 pixels, and the picture has {size[0]}x{size[1]}"
    ):
        embed(picture)
    assert read(picture) == b""
