"""`sd2rt run --from`: reproduce an image from its file's metadata."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.runtime import Pipeline, read_recipe
from sd2rt.runtime.metadata.recipe import digest, settings_of
from sd2rt.runtime.request.request import make_request

from ..conftest import Command, Refused

pytestmark = pytest.mark.usefixtures("here", "quick_opening")

FAST = ("--steps", "2", "--threads", "1", "--seed", "5")


@pytest.fixture
def stored(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle ``small`` in the cache, where ``--from`` looks up a file's bundle."""
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path / "cache"))
    return Path(shutil.copytree(small_bundle, tmp_path / "cache" / "bundles" / "small"))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    values = np.random.default_rng(3).integers(0, 256, (70, 80, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def pixels(path: str | Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def text_of(path: str | Path) -> dict[str, str]:
    with Image.open(path) as image:
        return dict(image.text)  # type: ignore[attr-defined]


def write(path: Path, **text: str) -> Path:
    info = PngInfo()
    for key, value in text.items():
        info.add_itxt(key, value)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def chunk(**changes: Any) -> str:
    return json.dumps({"request": {"prompt": "a", "seed": 5}, "bundle": "small"} | changes)


OPTIONS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "ddim": (
        "--sampler",
        "ddim",
        "--eta",
        "0.5",
        "--guidance",
        "3.3",
        "--rescale",
        "0.4",
        "--negative",
        "naïve",
    ),
    "schedule": ("--sampler", "dpmpp-2m", "--schedule", "trailing", "--size", "128x64"),
    "no guidance": ("--guidance", "1", "--sampler", "euler"),
    "cuda": ("--rng", "cuda", "--sampler", "ddim", "--eta", "1"),
    "another gpu": ("--rng", "cuda:28x1536"),
    "variation": ("--variation", "9:0.3"),
    "prompt": ("--prompt-syntax", "a1111", "--clip-skip", "2", "--negative", "[a:b:0.5] (c:0.4)"),
    "karras": ("--sampler", "unipc", "--schedule", "karras", "--sampler-option", "solver_order=3"),
    "options": (
        "--sampler",
        "euler",
        "--sampler-option",
        "s_churn=3",
        "--zero-snr",
        "--schedule",
        "trailing",
    ),
    "levels": ("--sampler", "dpmpp-2m", "--sigmas", "14,5,1.5,0.3,0", "--guidance", "9,3"),
    "timesteps": ("--sampler", "ddpm", "--timesteps", "999,700,300,20", "--guidance-interval", "0.2:inf"),
    "preset": ("--preset", "lcm"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_same_picture_again(sd2rt: Command, stored: Path, options: tuple[str, ...]) -> None:
    prompt = "Ein Äpfelchen,\n 林檎 (red:1.2)  🍎"
    first = sd2rt("run", stored, prompt, *FAST, *options, "-o", "first.png")
    assert first.code == 0, first.err
    # Neither the bundle nor the prompt: both are in the file.
    second = sd2rt("run", "--from", "first.png", "--threads", "1", "-o", "second.png")
    # A preset warns in both, since the bundle is not distilled.
    assert (second.code, second.err) == (0, first.err)
    np.testing.assert_array_equal(pixels("second.png"), pixels("first.png"))
    assert text_of("second.png") == text_of("first.png")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_backend_and_precision_are_told_and_not_asked_for(
    sd2rt: Command, stored: Path, precision: str
) -> None:
    openvino = pytest.importorskip("openvino")
    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in able:
        pytest.skip("this CPU has no bfloat16 instructions")
    chosen = ("--backend", "openvino") if precision == "fp32" else ("--precision", precision)
    made = sd2rt("run", stored, "a", *FAST, *chosen, "-o", "first.png")
    assert made.code == 0, made.err
    again = sd2rt("run", "--from", "first.png", "--threads", "1", "-o", "second.png")
    assert (again.code, again.err) == (0, "")
    first, second = (json.loads(text_of(name)["sd2rt"]) for name in ("first.png", "second.png"))
    assert (first.pop("backend"), first.pop("precision")) == ("openvino", precision)
    assert (second.pop("backend"), second.pop("precision")) == ("onnxruntime", "fp32")
    assert first == second


def test_a_preset_takes_the_place_of_all_that_it_sets(sd2rt: Command, stored: Path) -> None:
    first = sd2rt("run", stored, "a", *FAST, "--sampler", "ddim", "--guidance", "5", "-o", "first.png")
    assert first.code == 0, first.err
    said = sd2rt("run", "--from", "first.png", "--preset", "turbo", "--json", "-q", "-o", "second.png")
    facts = json.loads(said.out)
    assert (facts["sampler"], facts["schedule"], facts["steps"]) == ("euler", "trailing", 1)
    assert facts["guidance_scale"] == 0


def test_names_of_schedules_are_those_of_the_recipes_grid(sd2rt: Command, stored: Path) -> None:
    chosen = ("--sampler", "euler", "--grid", "a1111", "--schedule", "karras")
    first = sd2rt("run", stored, "a", *FAST, *chosen, "-o", "first.png")
    assert first.code == 0, first.err
    for schedule, own in (("Simple", "simple"), ("SGM Uniform", "sgm-uniform"), ("normal", "normal")):
        said = sd2rt("run", "--from", "first.png", "--schedule", schedule, "--json", "-o", "second.png")
        assert said.code == 0, said.err
        assert json.loads(said.out)["schedule"] == own


def test_a_word_that_may_be_a_mistyped_bundle_is_told(sd2rt: Command, stored: Path) -> None:
    assert sd2rt("run", stored, "a", *FAST, "-o", "first.png").code == 0
    said = sd2rt("run", "--from", "first.png", "smal", "-o", "second.png")
    assert "note: 'smal' is not a bundle: it is used as the prompt" in said.err
    assert "taken for the prompt" not in sd2rt("run", "--from", "first.png", "a fox", "-o", "third.png").err


def test_steps_are_those_of_a_list_of_its_own(sd2rt: Command, stored: Path) -> None:
    words = ("--sampler", "euler", "--sigmas", "14,5,0.3,0", "--seed", "1", "-o", "own.png")
    assert sd2rt("run", stored, "a", *words).code == 0
    assert "Steps: 3," in text_of("own.png")["parameters"]


def test_an_embedding_is_asked_for_again(sd2rt: Command, stored: Path) -> None:
    for name, seed in (("toy.safetensors", 1), ("other.safetensors", 2)):
        values = np.random.default_rng(seed).standard_normal((2, 32)).astype(np.float32)
        save_file({"<toy>": values}, name)
    first = sd2rt("run", stored, "a <toy>", *FAST, "--embedding", "toy.safetensors", "-o", "first.png")
    assert first.code == 0, first.err
    again = ("run", "--from", "first.png", "--threads", "1", "-o", "second.png")
    with_it = sd2rt(*again, "--embedding", "toy.safetensors")
    assert (with_it.code, with_it.err) == (0, "")
    np.testing.assert_array_equal(pixels("second.png"), pixels("first.png"))
    assert "note: the embedding <toy> (" in sd2rt(*again).err
    assert "is a different file" in sd2rt(*again, "--embedding", "other.safetensors").err


def test_every_image_of_a_batch_again(sd2rt: Command, small_bundle: Path) -> None:
    for folder, options in (("plain", ()), ("varied", ("--variation", "9:0.4"))):
        sd2rt("run", small_bundle, "a", *FAST, "--count", "3", *options, "-o", folder)
        made = sorted(Path(folder).iterdir())
        assert [path.stem for path in made] == (["5", "6", "7"] if not options else ["5v10", "5v11", "5v9"])
        assert len({pixels(path).tobytes() for path in made}) == 3
        for path in made:
            sd2rt("run", "--from", path, small_bundle, "--threads", "1", "-o", "again.png")
            np.testing.assert_array_equal(pixels("again.png"), pixels(path))


def test_a_picture_from_a_picture_again(
    sd2rt: Command, refused: Refused, small_bundle: Path, photo: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first.png"
    said = sd2rt("run", small_bundle, "a", "--image", photo, "--strength", "0.6", *FAST, "-q", "-o", first)
    assert said.code == 0, said.err
    words = ("run", "--from", first, small_bundle)
    assert refused(2, *words) == (
        f"{first} was made from an image, which the file does not contain: pass it again with --image"
    )
    again = sd2rt(*words, "--image", photo, "--threads", "1", "-o", "again.png")
    assert again.code == 0
    assert "note" not in again.err
    np.testing.assert_array_equal(pixels("again.png"), pixels(first))
    Image.new("RGB", (64, 64)).save("other.png")
    other = sd2rt(*words, "--image", "other.png", "--threads", "1", "-o", "again.png")
    assert other.code == 0
    assert other.err == f"sd2rt: note: the image differs from the one that {first} was made from\n"


def test_an_upscaled_picture_again(
    sd2rt: Command, stored: Path, small_upscaler_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_upscaler_bundle, tmp_path / "cache" / "bundles" / "small-upscaler")
    options = ("--upscale", "small-upscaler", "--noise-level", "7", "--tile", "32")
    said = sd2rt("run", stored, "a fox", *FAST, *options, "-o", "first.png")
    assert said.code == 0, said.err
    said = sd2rt("run", "--from", "first.png", "--threads", "1", "-o", "second.png")
    assert (said.code, said.err) == (0, "")
    np.testing.assert_array_equal(pixels("second.png"), pixels("first.png"))
    assert text_of("second.png") == text_of("first.png")


HIRES = (
    "a fox\nNegative prompt: blurry\nSteps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4, Seed: 9, "
    "Size: 64x128, Denoising strength: 0.6, {}, RNG: CPU, Version: v1.10.1"
)


def test_hires_fix_is_two_calls(sd2rt: Command, stored: Path, tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.png",
        parameters=HIRES.format(
            "Hires upscale: 2, Hires steps: 4, Hires CFG Scale: 3, Hires upscaler: Lanczos"
        ),
    )
    said = sd2rt("run", "--from", path, stored, "--threads", "1", "-o", "first.png")
    assert (said.code, said.err) == (0, "")
    common: dict[str, Any] = {
        "negative_prompt": "blurry",
        "seed": 9,
        "sampler": "dpmpp-2m",
        "schedule": "karras",
    }
    common |= {"grid": "a1111", "prompt_syntax": "a1111"}
    with Pipeline.open(stored, threads=1) as pipe:
        (small,) = pipe(
            "a fox", width=64, height=128, num_inference_steps=3, guidance_scale=4.0, **common
        ).images
        image = small.resize((128, 256), Image.Resampling.LANCZOS)
        again = pipe("a fox", image=image, strength=0.6, num_inference_steps=4, guidance_scale=3.0, **common)
    np.testing.assert_array_equal(pixels("first.png"), np.asarray(again.images[0]))
    # The picture records both passes.
    said = sd2rt("run", "--from", "first.png", "--threads", "1", "-o", "second.png")
    assert (said.code, said.err) == (0, "")
    np.testing.assert_array_equal(pixels("second.png"), pixels("first.png"))
    assert text_of("second.png") == text_of("first.png")
    told = (
        "Size: 64x128, Denoising strength: 0.6, Hires resize: 128x256, Hires steps: 4, Hires CFG Scale: 3, "
    )
    assert told + "Hires upscaler: Lanczos" in text_of("first.png")["parameters"]


def test_hires_fix_over_latents(sd2rt: Command, stored: Path, tmp_path: Path) -> None:
    """The second pass starts from the first one's latents, enlarged as torch does."""
    import torch

    path = write(tmp_path / "x.png", parameters=HIRES.format("Hires upscale: 2, Hires upscaler: Latent"))
    said = sd2rt("run", "--from", path, stored, "--threads", "1", "-o", "first.png")
    assert (said.code, said.err) == (0, "")
    recipe = read_recipe(path)
    with Pipeline.open(stored, threads=1) as pipe:
        small = pipe(**recipe.fields, output_type="latent").images[0]
        wide = torch.nn.functional.interpolate(torch.from_numpy(small)[None], (32, 16), mode="bilinear")[
            0
        ].numpy()
        request = {**recipe.fields, "width": 128, "height": 256, "strength": 0.6}
        (planned,) = pipe.plan([make_request(**request, image=Image.new("RGB", (128, 256)))])
        with pipe.stream_planned([replace(planned, image_latents=wide)]) as running:
            for _ in running:
                pass
            (outcome,) = running.outcomes()
    assert not isinstance(outcome, EngineError)
    difference = np.abs(pixels("first.png").astype(int) - np.asarray(outcome.images[0]).astype(int))
    assert difference.max() <= 1


def test_latents_of_an_image_replace_it(small_bundle: Path) -> None:
    with Pipeline.open(small_bundle, threads=1) as pipe:
        image = Image.effect_noise((64, 64), 40).convert("RGB")
        request = make_request(
            prompt="a", image=image, strength=0.5, num_inference_steps=4, seed=1, grid="a1111"
        )
        (planned,) = pipe.plan([request])
        other = make_request(
            **{**request.model_dump(exclude_unset=True), "image": Image.new("RGB", (64, 64))}
        )
        (blank,) = pipe.plan([other])
        images = []
        latents: Any = None
        for each in (planned, blank):
            chosen = each if latents is None else replace(each, image_latents=latents)
            with pipe.stream_planned([chosen]) as running:
                latents = running.jobs[0][0].trajectories[0].image_latents
                for _ in running:
                    pass
                (outcome,) = running.outcomes()
            assert not isinstance(outcome, EngineError)
            images.append(np.asarray(outcome.images[0]))
    np.testing.assert_array_equal(images[0], images[1])


@pytest.mark.parametrize(
    ("settings", "method", "note"),
    [
        ("Hires resize: 128x256, Hires upscaler: Latent (nearest-exact)", "nearest-exact", None),
        ("Hires resize: 0x256, Hires upscaler: None", "lanczos", None),
        (
            "Hires upscale: 2, Hires upscaler: R-ESRGAN 4x+",
            "lanczos",
            "Hires upscaler R-ESRGAN 4x+ is not available",
        ),
        (
            "Hires upscale: 0.9, Hires upscaler: Latent",
            None,
            "(Hires upscale: 0.9) is left out: width 56 is not a",
        ),
        ("Hires resize: 128x128", None, "(Hires resize: 128x128) is left out: its picture is cropped"),
        ("Hires upscale: nan", None, "(Hires upscale: nan) is left out: it is not a factor"),
        ("Hires upscale: 2, Hires sampler: Euler a", "bilinear", None),
        (
            "Hires upscale: 2, Hires sampler: DPM adaptive",
            "bilinear",
            "Hires sampler DPM adaptive is not supported",
        ),
        ("Hires upscale: 2, Hires checkpoint: other", "bilinear", "Hires checkpoint: other is not supported"),
    ],
)
def test_forms_of_hires_fix(settings: str, method: str | None, note: str | None, tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path / "x.png", parameters=HIRES.format(settings)))
    assert (None if recipe.second_pass is None else recipe.second_pass.method) == method
    assert any(note in said for said in recipe.notes) if note else not recipe.notes
    if recipe.second_pass is not None:
        assert {"width": 128, "height": 256, "strength": 0.6}.items() <= recipe.second_pass.fields.items()
    if "Euler a" in settings:
        assert recipe.second_pass is not None
        assert recipe.second_pass.fields["sampler"] == "euler-a"
    assert "strength" not in recipe.fields


@pytest.mark.parametrize(
    ("settings", "size", "note"),
    [
        ("Hires upscale: 1.5, Hires upscaler: Latent", (96, 192), None),
        ("Hires upscale: 1.3, Hires upscaler: Latent", (80, 160), None),
        ("Hires upscale: 1.3, Hires upscaler: Lanczos", (80, 160), "pixels are enlarged to 80x160"),
        ("Hires resize: 0x190, Hires upscaler: Latent (nearest)", (88, 184), None),
    ],
)
def test_hires_fix_to_odd_sizes(
    settings: str, size: tuple[int, int], note: str | None, tmp_path: Path
) -> None:
    """AUTOMATIC1111 rounds the sides of latents down."""
    recipe = read_recipe(write(tmp_path / "x.png", parameters=HIRES.format(settings)))
    assert recipe.second_pass is not None
    assert (recipe.second_pass.fields["width"], recipe.second_pass.fields["height"]) == size
    assert any(note in said for said in recipe.notes) if note else not recipe.notes


def test_options_and_the_second_pass(sd2rt: Command, stored: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "x.png", parameters=HIRES.format("Hires upscale: 2, Hires steps: 4"))
    run = ("run", "--from", path, stored, "--threads", "1", "--json")
    passes = json.loads(sd2rt(*run, "--steps", "2", "--strength", "0.9").out)
    assert (passes["steps"], passes["second_pass"]["request"]) == (
        2,
        {"width": 128, "height": 256, "strength": 0.9},
    )
    for options in (("--no-hires",), ("--size", "64x64")):
        said = sd2rt(*run, *options)
        assert "second_pass" not in json.loads(said.out)
        assert "the second pass (hires fix) is left out" in said.err


def test_options_take_the_place_of_what_is_told(sd2rt: Command, small_bundle: Path) -> None:
    options = ("--sampler", "ddim", "--eta", "0.5", "--negative", "b")
    sd2rt("run", small_bundle, "a", *FAST, *options, "-o", "first.png")
    changed = ("--seed", "6", "--eta", "0", "--negative", "", "--steps", "3")
    said = sd2rt("run", "--from", "first.png", small_bundle, "c", *changed, "--json", "-o", "second.png")
    facts = json.loads(said.out)
    expected = {"prompt": "c", "negative_prompt": "", "seed": 6, "eta": 0.0, "steps": 3, "sampler": "ddim"}
    assert expected.items() <= facts.items()
    # A word alone is a prompt, unless it is a bundle's.
    said = sd2rt("run", "--from", "first.png", small_bundle, "--json", "-o", "second.png")
    assert json.loads(said.out)["prompt"] == "a"


def test_another_bundle_is_told(sd2rt: Command, refused: Refused, small_bundle: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "x.png", sd2rt=chunk(identity="ab" * 32))
    said = sd2rt("run", "--from", path, small_bundle, "--steps", "1", "--threads", "1")
    assert said.code == 0
    assert said.err == (
        f"sd2rt: note: {path} was made with a different bundle (small, {'ab' * 5}…) than small\n"
    )
    said = sd2rt("run", "--from", path, small_bundle, "--steps", "1", "--threads", "1", "--quiet")
    assert (said.code, said.err) == (0, "")


@pytest.mark.parametrize("name", ["small", "../small", "/etc", "~", "", "x" * 5000, "a\x1b[31m"])
def test_bundle_that_is_not_in_the_cache(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path / "cache"))
    path = write(tmp_path / "x.png", sd2rt=chunk(bundle=name))
    said = refused(2, "run", "--from", path)
    assert said.endswith("which is not in the cache: name a bundle before the prompt")
    assert "\x1b" not in said


def test_bundle_that_is_not_named(refused: Refused, tmp_path: Path) -> None:
    path = write(tmp_path / "x.png", parameters="a\nSteps: 2, Sampler: Euler, Seed: 1")
    assert refused(2, "run", "--from", path).startswith(f"{path} does not name its bundle")


def test_text_of_automatic1111(sd2rt: Command, small_bundle: Path, tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.png",
        parameters="a fox,\nat dusk\nNegative prompt: blurry\nSteps: 2, Sampler: DPM adaptive, CFG scale: 3, "
        "Seed: 9, Size: 64x128, Model hash: 4bdfc29cda, Model: other, Face restoration: GFPGAN, Version: v1.10.1",
    )
    said = sd2rt("run", "--from", path, small_bundle, "--threads", "1", "--json")
    assert said.code == 0
    assert said.err.splitlines() == [
        "sd2rt: note: Sampler DPM adaptive is not supported (it chooses its steps by the image): the bundle's "
        "default is used",
        "sd2rt: note: Face restoration: GFPGAN is not supported and is ignored",
        f"sd2rt: note: {path} was made with the model other (4bdfc29cda), but small was built from other files",
    ]
    expected = {"prompt": "a fox,\nat dusk", "negative_prompt": "blurry", "steps": 2, "guidance_scale": 3.0}
    expected |= {"seed": 9, "width": 64, "height": 128}
    facts = json.loads(said.out)
    assert expected.items() <= facts.items()
    assert facts["request"]["rng"] == "cuda"


def test_model_hash_is_that_of_the_checkpoint(small_bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(small_bundle)
    known = next(iter(manifest.source.files.values()))
    line = "a\nSteps: 2, Sampler: Euler, Seed: 1, Model hash: "
    same = read_recipe(write(tmp_path / "same.png", parameters=line + known[:10]))
    assert same.bundle_notes(manifest) == []
    other = read_recipe(write(tmp_path / "other.png", parameters=line + "0123456789"))
    assert len(other.bundle_notes(manifest)) == 1


def test_own_text_comes_first(tmp_path: Path) -> None:
    path = write(tmp_path / "x.png", sd2rt=chunk(), parameters="b\nSteps: 2, Sampler: Euler, Seed: 1")
    assert read_recipe(path).fields == {"prompt": "a", "seed": 5}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[]",
        "{}",
        "null",
        '{"request": 5}',
        '{"request": {"seed": "five"}}',
        '{"request": {"seed": 1.5}}',
        '{"request": {"prompt": ["a"]}}',
        '{"request": {"guidance_scale": NaN}}',
        '{"request": {"guidance_scale": 1e999}}',
        '{"request": {"width": -64}}',
        '{"request": {"eta": {"a": {}}}}',
        '{"request": {"rng": "x\\u001b[31m"}}',
        '{"request": {"variation_strength": 0.5}}',
        '{"request": {}, "bundle": 5}',
        '{"request": {}, "inputs": {"image": 5}}',
        '{"request": {}, "tile": "64"}',
        '{"request": {}, "upscaled": []}',
        '{"request": {}, "second_pass": {"method": "bilinear", "request": {"width": 64}}}',
        '{"request": {}, "second_pass": {"method": "best", "request": {}}}',
        '{"request": {}, "second_pass": {"method": "nearest", "request": {"width": 1, "height": 64, "strength": 1}}}',
        '{"request": {}, "upscaled": {"request": {"seed": []}}}',
        '{"request": {"seed": ' + "9" * 5000 + "}}",
        '{"request": ' + "[" * 100_000,
        '{"request": ' + '{"a":' * 50_000 + "1" + "}" * 50_001,
        '{"request": {"prompt": "\\ud800"}}',
        '{"request": {"seed": "' + "x" * 500_000 + '"}}',
    ],
)
def test_wrong_data(refused: Refused, tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "x.png", sd2rt=text)
    said = refused(2, "run", "--from", path)
    assert said.startswith(f"the generation settings in {path} are invalid (")
    assert len(said) < 500
    assert said.isprintable()
    with pytest.raises(RequestError):
        read_recipe(path)


def test_no_file_is_read_that_another_names(
    sd2rt: Command, small_bundle: Path, photo: Path, tmp_path: Path
) -> None:
    fields = {
        "prompt": "a",
        "image": str(photo),
        "max_image_pixels": 1,
        "num_images_per_prompt": 10**9,
        "new": 3,
    }
    recipe = read_recipe(write(tmp_path / "x.png", sd2rt=chunk(request=fields)))
    assert recipe.fields == {"prompt": "a"}
    assert recipe.notes == tuple(f"{name} is not supported and is ignored" for name in list(fields)[1:])


def test_a_file_does_not_flood_the_terminal(tmp_path: Path) -> None:
    unknown = {f"new{number}": 1 for number in range(1000)}
    recipe = read_recipe(write(tmp_path / "x.png", sd2rt=chunk(request=unknown)))
    assert len(recipe.notes) == 21
    assert recipe.notes[-1] == "980 more settings are not supported and are ignored"


def test_files_that_tell_nothing(refused: Refused, photo: Path, tmp_path: Path) -> None:
    assert "contains no generation settings" in refused(2, "run", "--from", photo)
    assert "contains no generation settings" in refused(
        2, "run", "--from", write(tmp_path / "blank.png", parameters=" \n")
    )
    with Image.open(photo) as image:
        image.save(tmp_path / "photo.jpg")
    assert "contains no generation settings" in refused(2, "run", "--from", tmp_path / "photo.jpg")
    assert "cannot be read" in refused(2, "run", "--from", tmp_path / "missing.png")
    data = write(tmp_path / "cut.png", sd2rt=chunk()).read_bytes()
    (tmp_path / "cut.png").write_bytes(data[:-30])
    assert "damaged PNG" in refused(2, "run", "--from", tmp_path / "cut.png")


FOREIGN = {
    "ComfyUI": ({"prompt": '{"3": {"class_type": "LoadImage", "inputs": {}}}'}, "its graph has no sampler"),
    "InvokeAI": ({"invokeai_metadata": "[]"}, "it is not a JSON object"),
    "TensorArt": ({"generation_data": "{}"}, None),
}


@pytest.mark.parametrize("program", FOREIGN)
def test_recipes_of_other_programs_that_cannot_be_read(
    refused: Refused, tmp_path: Path, program: str
) -> None:
    chunks, reason = FOREIGN[program]
    path = write(tmp_path / "x.png", **chunks)
    said = refused(2, "run", "--from", path)
    assert said.startswith(f"{path} contains settings of {program}, which cannot be read")
    assert reason is None or f"({reason}" in said
    assert "use a picture of sd2rt, AUTOMATIC1111, ComfyUI, SwarmUI, InvokeAI or Fooocus" in said


@pytest.mark.parametrize(
    "text",
    [
        "A painting of a fox",
        "Title: Fox, Author: Anna, Year: 1885",
        "a fox\nNegative prompt: blurry",
        "a fox\nMood: dark, Model: Anna, Place: a studio",
        "[1, 2, 3]",
        '{"a": "Steps: 20, Sampler: Euler, Seed: 7, Size: 64x64"}',
        '{"Steps": 20, "Sampler": "Euler", "Seed": 7}',
        "\ufeff{}",
        "Steps: first mix, then bake: 20 minutes, serve: warm",
        "<x:xmpmeta xmlns:x='adobe:ns:meta/'><dc:title>fox</dc:title></x:xmpmeta>",
    ],
)
def test_text_that_is_no_recipe_never_is_a_prompt(refused: Refused, tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "x.png", parameters=text)
    assert f"{path} contains a text without generation settings: " in refused(2, "run", "--from", path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(max_size=200).filter(lambda text: "Steps" not in text))
def test_no_text_without_settings_is_read(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "x.png", parameters=text.encode(errors="ignore").decode())
        with pytest.raises(RequestError, match=r"no generation settings|without generation settings"):
            read_recipe(path)


def test_texts_that_are_too_large(refused: Refused, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("sd2rt", " " * 80_000_000, zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "bomb.png", pnginfo=info)
    assert "damaged PNG" in refused(2, "run", "--from", tmp_path / "bomb.png")


@pytest.mark.parametrize(
    ("variation", "said"),
    [
        ("7", "--variation '7' is not SEED:STRENGTH, such as 7:0.2"),
        ("7:", "--variation '7:' is not SEED:STRENGTH, such as 7:0.2"),
        ("x:0.5", "--variation 'x:0.5' is not SEED:STRENGTH, such as 7:0.2"),
        ("7:2", "variation_strength is 2.0: input should be less than or equal to 1"),
        ("7:nan", "variation_strength is nan: use a finite number"),
    ],
)
def test_bad_variation(refused: Refused, variation: str, said: str) -> None:
    assert refused(2, "run", "no-such-bundle", "a", "--variation", variation) == said


def test_prompts_of_standard_input_and_a_recipe(refused: Refused) -> None:
    text = refused(2, "run", "--from", "-", "--image", "-")
    assert text.startswith("--from and --image all read standard input")


def test_everything_that_is_not_at_its_default_is_written() -> None:
    values: dict[str, Any] = {
        "prompt": "a",
        "negative_prompt": "",
        "strength": 0.3,
        "noise_level": 4,
        "paste": True,
        "paste_blur": 2.0,
        "num_inference_steps": 7,
        "guidance_scale": 1.1,
        "guidance_rescale": 0.2,
        "height": 128,
        "width": 64,
        "seed": 0,
        "rng": "cuda:80",
        "variation_seed": 0,
        "variation_strength": 0.1,
        "sampler": "ddim",
        "schedule": "leading",
        "eta": 0.1,
        "timesteps": (9.0, 4.5),
    }
    image = Image.new("RGB", (64, 64), "teal")
    request = make_request(**values, image=image, depth_map=np.zeros((4, 4), np.float32), output_type="np")
    settings, hashes = settings_of(request)
    assert json.loads(json.dumps(settings)) == values | {"timesteps": [9.0, 4.5]}
    assert set(hashes) == {"image", "depth_map"}
    assert hashes["image"] == digest(Image.new("RGB", (64, 64), "teal"))
    assert hashes["image"] != digest(Image.new("RGB", (64, 64), "blue"))
    assert make_request(**settings) == make_request(**values)


def test_library_makes_it_again_too(sd2rt: Command, small_bundle: Path) -> None:
    sd2rt("run", small_bundle, "a", *FAST, "--variation", "3:0.5", "-o", "first.png")
    with Pipeline.open(small_bundle, threads=1) as pipe:
        image = pipe(**read_recipe("first.png").fields).images[0]
    np.testing.assert_array_equal(np.asarray(image), pixels("first.png"))
