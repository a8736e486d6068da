"""`sd2rt run` with pictures: what each kind of bundle takes, what it refuses, and what it leaves."""

from __future__ import annotations

import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

from sd2rt.runtime.pipeline.pipeline import Pipeline

from ..conftest import Command, Refused

pytestmark = pytest.mark.usefixtures("here", "quick_opening")

FAST = ("--steps", "2", "--threads", "1", "--seed", "5")


@pytest.fixture
def pictures(here: Path, tmp_path: Path) -> Path:
    """Good and bad pictures, outside of the folder that commands run in."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    y, x = np.mgrid[0:64, 0:64]
    colours = np.stack([4 * x, 4 * y, 255 - 2 * (x + y)], axis=-1).astype(np.uint8)
    picture = Image.fromarray(colours)
    picture.save(folder / "good.png")
    picture.resize((100, 70)).save(folder / "odd.png")
    picture.resize((16, 16)).save(folder / "low.png")
    picture.resize((20, 12)).save(folder / "low-odd.png")
    mask = Image.fromarray(((x - 32) ** 2 + (y - 32) ** 2 < 300).astype(np.uint8) * 255)
    mask.save(folder / "mask.png")
    mask.resize((32, 64)).save(folder / "narrow-mask.png")
    Image.fromarray((x * 1000).astype(np.uint16)).save(folder / "depth.png")
    picture.save(folder / "moving.gif", save_all=True, append_images=[picture.rotate(90)])
    picture.save(folder / "good.jpg")
    (folder / "cut.jpg").write_bytes((folder / "good.jpg").read_bytes()[:-400])
    (folder / "text.png").write_text("no picture")
    (folder / "huge.png").write_bytes(_png_header(30_000, 30_000))
    (folder / "flat.png").write_bytes(_png_header(0, 64))
    return folder


def _png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG file that claims these sides."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--strength", "0"), "strength is 0"),
        (("--strength", "1.01"), "strength is 1.01"),
        (("--strength", "nan"), "strength is nan"),
        (("--image", "missing.png"), "missing.png"),
        (("--image", "{}/text.png"), "text.png"),
        (("--image", "{}/cut.jpg"), "cut.jpg"),
        (("--image", "{}/moving.gif"), "GIF"),
        (("--image", "{}/huge.png"), "30000x30000"),
        (("--image", "{}/flat.png"), "flat.png"),
        (("--image", "{}"), "pictures"),
        (("--image", "{}/good.png", "--max-image-pixels", "4095"), "4095"),
        (("--image", "{}/good.png", "--mask", "{}/narrow-mask.png"), "32x64 pixels, but its image is 64x64"),
        (("--image", "{}/good.png", "--depth", "{}/good.png"), "gray"),
        (("--image", "{}/good.png", "--strength", "0.3"), "strength 0.3 leaves none of 2 steps"),
        (("--tile", "20"), "tile is 20"),
    ],
)
def test_bad_input(
    refused: Refused, small_bundle: Path, pictures: Path, words: tuple[str, ...], said: str
) -> None:
    filled = [word.format(pictures) for word in words]
    assert said in refused(2, "run", small_bundle, "a", *FAST, *filled)


def test_standard_input_for_two(refused: Refused, small_bundle: Path) -> None:
    text = refused(2, "run", small_bundle, "-", "--image", "-")
    assert text.startswith("the prompts and --image all read standard input")
    text = refused(2, "run", small_bundle, "a", "--image", "-", "--mask", "-")
    assert text.startswith("--image and --mask all read standard input")


@pytest.mark.parametrize("words", [("--strength", "0.01"), ("--sampler", "euler", "--eta", "1")])
def test_depth_is_not_saved_of_what_is_refused(
    refused: Refused, small_depth_bundle: Path, pictures: Path, words: tuple[str, ...]
) -> None:
    image = ("--image", pictures / "good.png")
    refused(2, "run", small_depth_bundle, "a", *image, *words, "--save-depth", "new/depth.png")
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--save-depth", "depth.jpg"), "is not a .png file"),
        (("--save-depth", "out.png", "-o", "out.png"), "use different names"),
    ],
)
def test_where_depth_cannot_go(
    refused: Refused, small_depth_bundle: Path, pictures: Path, words: tuple[str, ...], said: str
) -> None:
    assert said in refused(2, "run", small_depth_bundle, "a", "--image", pictures / "good.png", *words)


@pytest.mark.parametrize("level", ["400", "-3"])
def test_upscaling_is_checked_before_anything_is_made(
    refused: Refused,
    small_bundle: Path,
    small_upscaler_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    level: str,
) -> None:
    def opened(*words: Any, **options: Any) -> Any:
        raise AssertionError("a bundle was opened")

    monkeypatch.setattr(Pipeline, "open", opened)
    text = refused(2, "run", small_bundle, "a", "--upscale", small_upscaler_bundle, "--noise-level", level)
    assert f"is {level}" in text


def test_out_of_memory_on_the_host(
    refused: Refused, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*words: Any, **options: Any) -> Any:
        raise MemoryError("Unable to allocate 412. MiB")

    monkeypatch.setattr("sd2rt.runtime.pipeline.run.to_unit", full)
    text = refused(5, "run", small_bundle, "a", *FAST)
    assert text.startswith("out of memory (Unable to allocate 412. MiB): make smaller images")


def test_upscaled_images_are_saved_one_by_one(
    sd2rt: Command, small_bundle: Path, small_upscaler_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption in the second leaves the first."""
    from sd2rt.runtime.cli import run_generation as making

    calls: list[str] = []
    own = making.make

    def make(pipeline: Any, requests: Any, stage: str, *rest: Any) -> Any:
        calls.append(stage)
        if calls.count("upscaling") == 2:
            raise KeyboardInterrupt
        return own(pipeline, requests, stage, *rest)

    monkeypatch.setattr(making, "make", make)
    said = sd2rt(
        "run", small_bundle, "a", *FAST, "--count", "3", "--upscale", small_upscaler_bundle, "-o", "out"
    )
    assert said.code == 130
    assert [path.name for path in Path("out").iterdir()] == ["5.png"]


def test_one_picture_is_read_and_encoded_once(
    sd2rt: Command, small_depth_bundle: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sd2rt.runtime.networks.networks import Networks
    from sd2rt.runtime.networks.vae import Vae

    made: list[str] = []

    def counted(what: str, own: Any) -> Any:
        def call(self: Any, image: Any) -> Any:
            made.append(what)
            return own(self, image)

        return call

    monkeypatch.setattr(Vae, "encode", counted("encoded", Vae.encode))
    monkeypatch.setattr(Networks, "depth", counted("depth", Networks.depth))
    words = ("--image", pictures / "odd.png", "--count", "3", "--save-depth", "depth.png", "-o", "out")
    said = sd2rt("run", small_depth_bundle, "a", *FAST, *words)
    assert said.code == 0, said.err
    assert sorted(made) == ["depth", "encoded"]
    assert said.err.count("the image is 100x70") == 1


def test_image_from_standard_input(
    sd2rt: Command, small_bundle: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (pictures / "good.png").open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        from_stream = sd2rt("run", small_bundle, "a", "--image", "-", *FAST, "-o", "a.png")
    assert from_stream.code == 0, from_stream.err
    from_file = sd2rt("run", small_bundle, "a", "--image", pictures / "good.png", *FAST, "-o", "b.png")
    assert from_file.code == 0, from_file.err
    assert _pixels("a.png") == _pixels("b.png")


# What a bundle does not do is answered with the kind that does.


def test_base_for_what_others_do(refused: Refused, small_bundle: Path, pictures: Path) -> None:
    image = ("--image", pictures / "good.png")
    text = refused(2, "run", small_bundle, "a", *image, "--depth", pictures / "depth.png")
    assert "depth-to-image needs a bundle of kind depth" in text
    text = refused(2, "run", small_bundle, "a", *image, "--noise-level", "20")
    assert "upscaling needs a bundle of kind upscaler" in text
    text = refused(2, "run", small_bundle, "a", "--strength", "0.5")
    assert text == "image-to-image with small (kind base) also needs image"
    text = refused(2, "run", small_bundle, "a", *image, "--paste")
    assert text == "inpainting with small (kind base) also needs mask"
    text = refused(2, "run", small_bundle, "a", "--mask", pictures / "mask.png")
    assert text == "inpainting with small (kind base) also needs image"
    assert "kind depth" in refused(2, "run", small_bundle, "a", *image, "--save-depth", "depth.png")
    assert "kind upscaler" in refused(2, "run", small_bundle, "a", "--upscale", small_bundle)


@pytest.mark.parametrize("kind", ["inpainting", "depth", "upscaler"])
def test_others_for_text_alone(refused: Refused, request: pytest.FixtureRequest, kind: str) -> None:
    bundle = request.getfixturevalue(f"small_{kind}_bundle")
    text = refused(2, "run", bundle, "a")
    assert f"is of kind {kind}, which supports" in text
    assert "(needs image" in text
    assert "text-to-image needs a bundle of kind base, v or turbo" in text


def test_inpainting_without_a_mask(refused: Refused, small_inpainting_bundle: Path, pictures: Path) -> None:
    text = refused(2, "run", small_inpainting_bundle, "a", "--image", pictures / "good.png")
    assert "(needs image and mask)" in text


def test_noise_level_above_the_checkpoint(
    refused: Refused, small_upscaler_bundle: Path, pictures: Path
) -> None:
    words = ("--image", pictures / "low.png", "--noise-level", "351")
    text = refused(2, "run", small_upscaler_bundle, "a", *FAST, *words)
    assert "noise level is 351" in text
    assert "350" in text


@pytest.mark.parametrize("shape", [(8,), (1, 1, 8, 8), (0, 8), (2, 8, 8)])
def test_depth_map_of_the_wrong_rank(
    small_depth_bundle: Path, pictures: Path, shape: tuple[int, ...]
) -> None:
    from sd2rt.engines.errors import RequestError

    image = Image.open(pictures / "good.png")
    with (
        Pipeline.open(small_depth_bundle) as pipe,
        pytest.raises(RequestError, match=r"depth") as caught,
    ):
        pipe("a", image=image, depth_map=np.zeros(shape, np.float32))
    assert "\n" not in str(caught.value)


# What each kind does.


def test_image_to_image(sd2rt: Command, small_bundle: Path, pictures: Path) -> None:
    words = ("--image", pictures / "odd.png", "--strength", "0.5", "--json", "-o", "out.png")
    said = sd2rt("run", small_bundle, "a fox", *FAST, *words)
    assert said.code == 0, said.err
    facts = json.loads(said.out)
    assert (
        said.err
        == "sd2rt: warning: the image is 100x70: resized to 96x64, because sides must be multiples of 8\n"
    )
    assert (facts["task"], facts["strength"], facts["width"], facts["height"]) == (
        "image-to-image",
        0.5,
        96,
        64,
    )
    with Image.open("out.png") as image:
        assert "Denoising strength: 0.5" in image.info["parameters"]
        assert image.size == (96, 64)


def test_paste_keeps_what_is_outside_the_mask(
    sd2rt: Command, small_inpainting_bundle: Path, pictures: Path
) -> None:
    words = ("--image", pictures / "good.png", "--mask", pictures / "mask.png")
    for name, more in (("plain", ()), ("pasted", ("--paste",)), ("hard", ("--paste", "--paste-blur", "0"))):
        said = sd2rt("run", small_inpainting_bundle, "a", *FAST, *words, *more, "-o", f"{name}.png")
        assert said.code == 0, said.err
    original, mask = (np.asarray(Image.open(pictures / f"{name}.png")) for name in ("good", "mask"))
    plain, pasted, hard = (np.asarray(Image.open(f"{name}.png")) for name in ("plain", "pasted", "hard"))
    outside = mask == 0
    assert (plain[outside] != original[outside]).any()
    np.testing.assert_array_equal(pasted[outside], original[outside])
    np.testing.assert_array_equal(hard[outside], original[outside])
    np.testing.assert_array_equal(hard[~outside], plain[~outside])
    assert (pasted[~outside] != hard[~outside]).any(), "the edge is soft"
    np.testing.assert_array_equal(pasted[32, 32], plain[32, 32])


@pytest.mark.parametrize("command", ["run", "batch"])
def test_only_masked(sd2rt: Command, small_bundle: Path, pictures: Path, command: str) -> None:
    """A bundle without an input for masks paints a part of an image of any size."""
    image, mask = Image.new("RGB", (150, 100), "teal"), Image.new("L", (150, 100))
    mask.paste(255, (90, 20, 120, 60))
    image.save("image.png")
    mask.save("mask.png")
    options: dict[str, Any] = {
        "image": "image.png",
        "mask": "mask.png",
        "only_masked": True,
        "mask_padding": 7,
    }
    words = ("--image", "image.png", "--mask", "mask.png")
    if command == "run":
        settings = ("--only-masked", "--mask-padding", "7")
        result = sd2rt("run", small_bundle, "a", *words, *settings, *FAST, "-o", "a.png")
    else:
        Path("rows.jsonl").write_text(json.dumps({"prompt": "a", **options}))
        result = sd2rt("batch", small_bundle, "rows.jsonl", *FAST, "-o", "out")
    assert result.code == 0, result.err
    path = Path("a.png") if command == "run" else next(Path("out").glob("*.png"))
    found = Image.open(path)
    assert found.size == image.size
    changed = np.asarray(ImageChops.difference(found.convert("RGB"), image)).max(2) > 0
    assert changed[30:50, 100:110].any()
    assert not changed[np.asarray(mask) == 0].any()
    again = sd2rt("run", small_bundle, "--from", path, *words, "-o", "b.png")
    assert again.code == 0, again.err
    assert _pixels("b.png") == _pixels(str(path))


def test_cropped_images(sd2rt: Command, small_bundle: Path) -> None:
    Image.linear_gradient("L").convert("RGB").resize((128, 64)).save("wide.png")
    Image.open("wide.png").crop((32, 0, 96, 64)).save("middle.png")
    cropped = ("--image", "wide.png", "--size", "64x64", "--resize-mode", "crop")
    assert sd2rt("run", small_bundle, "a", *cropped, *FAST, "-o", "a.png").code == 0
    assert sd2rt("run", small_bundle, "a", "--image", "middle.png", *FAST, "-o", "b.png").code == 0
    assert _pixels("a.png") == _pixels("b.png")


def test_saved_depth_gives_the_same_picture(sd2rt: Command, small_depth_bundle: Path, pictures: Path) -> None:
    image = ("--image", pictures / "good.png")
    said = sd2rt("run", small_depth_bundle, "a", *FAST, *image, "--save-depth", "depth.png", "-o", "a.png")
    assert said.code == 0, said.err
    with Image.open("depth.png") as depth:
        assert depth.mode == "I;16"
        assert depth.size == (384, 384)
        assert depth.getextrema() == (0, 65535)
    said = sd2rt("run", small_depth_bundle, "a", *FAST, *image, "--depth", "depth.png", "-o", "b.png")
    assert said.code == 0, said.err
    # 16 bits of depth, through the network, are worth less than 1 of 8 bits of colour.
    assert np.abs(_array("a.png") - _array("b.png")).max() <= 1


def test_constant_depth_is_defined(small_depth_bundle: Path, pictures: Path) -> None:
    with Pipeline.open(small_depth_bundle) as pipe:
        output = pipe(
            "a", image=pictures / "good.png", depth_map=np.full((9, 9), 3.0), num_inference_steps=2, seed=1,
            output_type="np",
        )  # fmt: skip
    assert np.isfinite(output.images).all()


@pytest.mark.parametrize("name", ["low", "low-odd"])
def test_upscaler_makes_exactly_four_times(
    sd2rt: Command, small_upscaler_bundle: Path, pictures: Path, name: str
) -> None:
    words = ("--image", pictures / f"{name}.png", "--json", "-o", "out.png")
    said = sd2rt("run", small_upscaler_bundle, "a", *FAST, *words)
    assert said.code == 0, said.err
    assert json.loads(said.out)["noise_level"] == 20
    with Image.open(pictures / f"{name}.png") as low, Image.open("out.png") as high:
        assert high.size == (4 * low.width, 4 * low.height)


def test_chain(sd2rt: Command, small_bundle: Path, small_upscaler_bundle: Path) -> None:
    """--upscale is Pipeline.upscale of what the first bundle makes."""
    words = ("--upscale", small_upscaler_bundle, "--noise-level", "7", "--json", "-o", "out.png")
    said = sd2rt("run", small_bundle, "a fox", "--guidance", "3", *FAST, *words)
    assert said.code == 0, said.err
    facts = json.loads(said.out)
    assert (facts["width"], facts["height"], facts["upscaled"]["noise_level"]) == (256, 256, 7)
    options: dict[str, Any] = {"seed": 5}
    with Pipeline.open(small_bundle) as base, Pipeline.open(small_upscaler_bundle) as upscaler:
        first = base("a fox", num_inference_steps=2, guidance_scale=3, **options)
        expected = upscaler.upscale(first, "a fox", negative_prompt="", noise_level=7, **options).images[0]
    np.testing.assert_array_equal(_array("out.png"), np.asarray(expected, int))


@pytest.mark.parametrize("kind", ["base", "turbo", "inpainting", "depth", "upscaler"])
def test_inspect_says_what_a_bundle_does(sd2rt: Command, request: pytest.FixtureRequest, kind: str) -> None:
    bundle = request.getfixturevalue("small_bundle" if kind == "base" else f"small_{kind}_bundle")
    text = sd2rt("inspect", bundle).out
    expected = {
        "base": ("text-to-image", "image-to-image", "strength 0.8", "inpainting", "strength 1"),
        "turbo": ("1 step, no guidance", "2 steps, no guidance, strength 0.5"),
        "inpainting": ("inpainting", "mask (1 channel), masked_image (4 channels)"),
        "depth": ("depth-to-image", "depth_estimator", "384x384"),
        "upscaler": ("upscaling", "noise level 20", "at most 350"),
    }
    for fact in expected[kind]:
        assert fact in text
    assert "encoder" in text


def _array(path: str) -> Any:
    return np.asarray(Image.open(path), int)


def _pixels(path: str) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()
