"""Outputs as files: recipes in images and files, progress of a call, public conversions."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sd2rt import Output, Pipeline, Preview, Progress, RequestError, read_recipe, to_pil


@pytest.fixture(scope="module")
def pipe(small_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(small_bundle, threads=1) as pipeline:
        yield pipeline


CALL: dict[str, Any] = {"num_inference_steps": 2, "seed": 3, "sampler": "ddim"}


def test_images_carry_their_recipes(pipe: Pipeline) -> None:
    output = pipe(["a füchs", "a hen"], num_images_per_prompt=2, guidance_scale=3.0, **CALL)
    assert [json.loads(image.info["sd2rt"])["prompt"] for image in output.images] == [
        *("a füchs", "a füchs"),
        *("a hen", "a hen"),
    ]
    assert (
        [json.loads(image.info["sd2rt"])["seed"] for image in output.images] == output.seeds == [3, 4, 5, 6]
    )
    assert "CFG scale: 3, Seed: 4" in output.images[1].info["parameters"]
    assert [recipe["seed"] for recipe in output.recipes] == output.seeds


def test_a_saved_image_is_drawn_again_from_its_recipe(pipe: Pipeline, tmp_path: Path) -> None:
    output = pipe(
        "a fox", width=128, variation_seed=9, variation_strength=0.2, num_images_per_prompt=2, **CALL
    )
    paths = output.save(tmp_path / "out")
    assert [path.name for path in paths] == ["3v9.png", "3v10.png"]
    for path, image in zip(paths, output.images, strict=True):
        recipe = read_recipe(path)
        (again,) = pipe(**recipe.fields).images
        assert again.tobytes() == image.tobytes() == Image.open(path).tobytes()


def test_latents_of_each_image(pipe: Pipeline, tmp_path: Path) -> None:
    """The recipe of an image from given latents has the hash of its own."""
    latents = np.random.default_rng(1).standard_normal((2, 4, 8, 8), np.float32)
    output = pipe("a", latents=latents, num_images_per_prompt=2, **CALL)
    digests = [recipe["inputs"]["latents"] for recipe in output.recipes]
    alone = [pipe("a", latents=latents[i : i + 1], **CALL).recipes[0]["inputs"]["latents"] for i in range(2)]
    assert digests == alone
    assert digests[0] != digests[1]


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.webp", "WEBP")])
def test_save_one(pipe: Pipeline, tmp_path: Path, name: str, kind: str) -> None:
    output = pipe("a fox", **CALL)
    for _ in range(2):
        assert output.save(tmp_path / name) == [tmp_path / name]
    with Image.open(tmp_path / name) as image:
        assert image.format == kind
    assert read_recipe(tmp_path / name).fields["prompt"] == "a fox"
    output.save(tmp_path / name, metadata=False)
    with pytest.raises(RequestError, match="contains no generation settings"):
        read_recipe(tmp_path / name)


def test_save_arrays_and_formats(pipe: Pipeline, tmp_path: Path) -> None:
    arrays = pipe("a fox", output_type="np", **CALL)
    images = pipe("a fox", **CALL)
    arrays.save(tmp_path / "a.png")
    images.save(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    (path,) = images.save(tmp_path, format="jpeg", quality=50)
    assert path.name == "3.jpg"
    # Files of earlier images are kept.
    assert images.save(tmp_path, format="jpeg")[0].name == "3-1.jpg"


def test_outputs_without_recipes(tmp_path: Path) -> None:
    output = Output([Image.new("RGB", (8, 8))], [7])
    assert output.save(tmp_path) == [tmp_path / "7.png"]


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        ("a.gif", {}, "neither a folder nor a .png"),
        ("a.png", {"format": "webp"}, "ends in .png, but the format is webp"),
        ("a.jpg", {"quality": 101}, "quality is 101"),
        ("a.jpg", {"quality": "high"}, "quality is 'high'"),
        ("out", {"format": "gif"}, "the format is 'gif'"),
        (3, {}, "the output"),
    ],
)
def test_arguments_of_save(tmp_path: Path, path: Any, options: dict[str, Any], said: str) -> None:
    output = Output([Image.new("RGB", (8, 8))], [7])
    target = tmp_path / path if isinstance(path, str) else path
    with pytest.raises(RequestError, match=said):
        output.save(target, **options)
    assert list(tmp_path.iterdir()) == []


def test_several_images_and_latents_are_no_file(pipe: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="one file, and there are 2 images"):
        pipe(["a", "b"], **CALL).save(tmp_path / "a.png")
    with pytest.raises(RequestError, match="latents are no images"):
        pipe("a", output_type="latent", **CALL).save(tmp_path / "a.png")


def test_progress_is_called_after_every_step(pipe: Pipeline) -> None:
    seen: list[tuple[int, int]] = []
    plain = pipe("a fox", **CALL)
    watched = pipe("a fox", progress=lambda state: seen.append((state.done, state.total)), **CALL)
    assert seen == [(1, 2), (2, 2)]
    assert watched.images[0].tobytes() == plain.images[0].tobytes()


def test_an_exception_in_progress_ends_the_call(pipe: Pipeline) -> None:
    steps = []

    def stop(state: Progress) -> None:
        steps.append(state.step)
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        pipe("a fox", progress=stop, **CALL)
    assert steps == [1]
    assert pipe("a fox", **CALL).seeds == [3]


def test_a_bar_is_for_terminals(
    pipe: Pipeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe("a fox", progress=True, **CALL)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    pipe("a fox", progress=True, **CALL)
    out, err = capsys.readouterr()
    assert (out, "2/2" in err) == ("", True)


@pytest.mark.parametrize("progress", [None, 3, "yes"])
def test_progress_of_another_type(pipe: Pipeline, progress: Any) -> None:
    with pytest.raises(RequestError, match=r"progress is .*: use True, False or a function"):
        pipe("a fox", progress=progress, **CALL)


def test_public_conversions(pipe: Pipeline) -> None:
    array = pipe("a fox", output_type="np", **CALL).images[0]
    assert to_pil(array).tobytes() == pipe("a fox", **CALL).images[0].tobytes()
    for wrong in (array[None], array[..., :1], array.astype(np.uint8), None):
        with pytest.raises(RequestError, match="to_pil takes an array"):
            to_pil(wrong)  # type: ignore[arg-type]
    assert isinstance(pipe.preview, Preview)
    with pipe.stream("a fox", **CALL) as run:
        for state in run:
            last = state.preview()
            assert last.tobytes() == state.previews()[0].tobytes()
            assert pipe.preview(state.latents())[0].size == last.size
        run.result()
    assert pipe.preview(np.zeros((4, 8, 8), np.float32))[0].size == (8, 8)
    with pytest.raises(RequestError, match="got latents of shape"):
        pipe.preview(np.zeros((3, 8, 8), np.float32))
