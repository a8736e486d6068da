"""Marks that the command line sets, read back by `sd2rt verify-image`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchmarks.recording.pictures import natural
from sd2rt import read_recipe
from sd2rt.engines.demo.build import build_demo
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.pipeline.output import Output
from sd2rt.runtime.provenance.watermark import embed
from tests.runtime.conftest import Command, Refused

pytest.importorskip("c2pa", reason="c2pa-python is not installed (extra c2pa)")

from benchmarks.recording.authority import Credentials, make_credentials

FAST = ("--steps", "1", "--threads", "1", "--seed", "5")
LARGE = ("--size", "256x256")

pytestmark = pytest.mark.usefixtures("here", "quick_opening")


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return make_credentials(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_demo("demo", tmp_path_factory.mktemp("demo") / "demo").path


@pytest.fixture(scope="module")
def demo_x4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_demo("demo-x4", tmp_path_factory.mktemp("demo-x4") / "demo-x4").path


def flat(width: int, height: int, seed: int) -> Any:
    return np.full((height, width, 3), (255, seed, 0), np.uint8)


def found(sd2rt: Command, *words: str | Path, code: int = 0) -> dict[str, Any]:
    said = sd2rt("verify-image", "--json", *words)
    assert said.code == code, said.err
    facts: dict[str, Any] = json.loads(said.out)
    return facts


def pixels(path: str | Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_every_mark(sd2rt: Command, demo: Path, credentials: Credentials, name: str, tmp_path: Path) -> None:
    marks = ("--watermark", "sdv2", "--c2pa-cert", credentials.certificate, "--c2pa-key", credentials.key)
    Image.fromarray(natural(256, 256, seed=1)).save(tmp_path / "start.png")
    start = ("--image", tmp_path / "start.png", "--strength", "1")
    said = sd2rt("run", demo, "a fox", *FAST, *start, "-o", name, *marks)
    assert said.code == 0, said.err
    facts = found(sd2rt, name, "--c2pa-trust", credentials.root)
    assert facts["generated"] is True
    assert facts["digital_source_type"] == "compositeWithTrainedAlgorithmicMedia"
    assert facts["c2pa"]["state"] == "trusted"
    assert facts["c2pa"]["source_type"] == "compositeWithTrainedAlgorithmicMedia"
    assert (facts["settings"]["program"], facts["settings"]["seed"]) == ("sd2rt", 5)
    assert found(sd2rt, name)["c2pa"]["state"] == "valid"
    assert read_recipe(name).fields["prompt"] == "a fox"
    again = sd2rt("run", demo, "--from", name, *start, "--threads", "1", "-o", "again.png", "--json")
    assert json.loads(again.out)["seed"] == 5, again.err
    # A byte of the pixels.
    data = bytearray(Path(name).read_bytes())
    data[-20] ^= 1
    Path("altered" + Path(name).suffix).write_bytes(data)
    said = sd2rt("verify-image", "altered" + Path(name).suffix)
    assert said.code == 2
    assert "altered after it was signed" in said.err or "damaged" in said.err


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_marks_that_python_sets(sd2rt: Command, credentials: Credentials, name: str) -> None:
    output = Output([Image.fromarray(natural(512, 384, seed=1))], [3])
    output.save(
        name,
        watermark="sdv2",
        c2pa_cert=credentials.certificate,
        c2pa_key=str(credentials.key),
    )
    # Lossy formats alter the pixels' averages by more than this watermark survives.
    watermark = "sdv2" if name == "a.png" else None
    facts = found(sd2rt, name)
    assert (facts["watermark"], facts["c2pa"]["state"]) == (watermark, "valid")
    assert facts["digital_source_type"] == "trainedAlgorithmicMedia"
    output.save(name, watermark="sdv2", metadata=False)
    facts = found(sd2rt, name, code=0 if watermark else 2)
    assert (facts["watermark"], facts["c2pa"]["state"]) == (watermark, "none")
    assert facts["digital_source_type"] is None
    Path(name).unlink()
    small = Output([output.images[0], Image.new("RGB", (64, 64))], [3, 4])
    with pytest.raises(RequestError, match="at least 256x256 pixels, and the picture has 64x64"):
        small.save("folder", watermark="sdv2")
    with pytest.raises(RequestError, match="the watermark is 'loud': use sdv2 or none"):
        output.save(name, watermark="loud")  # type: ignore[arg-type]
    assert not Path(name).exists()
    assert not Path("folder").exists()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize("make", [natural, flat])
def test_a_watermark_that_cannot_be_read_back_is_a_warning(
    sd2rt: Command, name: str, make: Callable[..., Any], recwarn: pytest.WarningsRecorder
) -> None:
    Output([Image.fromarray(make(256, 256, seed=2))], [3]).save(name, watermark="sdv2")
    texts = [str(warning.message) for warning in recwarn if "watermark" in str(warning.message)]
    is_readable = found(sd2rt, name)["watermark"] == "sdv2"
    assert is_readable == (make is flat and name == "a.png")
    assert len(texts) == (0 if is_readable else 1)
    recwarn.clear()
    Output([Image.fromarray(make(256, 256, seed=2))], [3]).save(name)
    assert not recwarn.list


def test_each_picture_with_an_unreadable_watermark_has_one_line(sd2rt: Command, demo: Path) -> None:
    words = ("run", demo, "a fox", *FAST, *LARGE, "--count", "2", "--format", "jpeg", "-o", "out")
    said = sd2rt(*words, "--watermark", "sdv2")
    assert said.code == 0
    lines = [line for line in said.err.splitlines() if "cannot be read back" in line]
    assert lines == [
        f"sd2rt: warning: the watermark sdv2 cannot be read back from image {seed} as jpeg: XMP and C2PA, unlike "
        "it, do not depend on the pixels"
        for seed in (5, 6)
    ]
    assert len(list(Path("out").iterdir())) == 2
    assert "cannot be read back" not in sd2rt(*words).err
    assert sd2rt(*words, "--watermark", "sdv2", "--quiet").err == ""
    Path("rows.txt").write_text("a fox\n")
    batch = ("batch", demo, "rows.txt", *FAST, *LARGE, "--format", "webp", "-o", "rows")
    assert "cannot be read back from image 5 as webp" in sd2rt(*batch, "--watermark", "sdv2").err


def test_xmp_is_the_default(sd2rt: Command, demo: Path) -> None:
    assert sd2rt("run", demo, "a fox", *FAST, "-o", "a.png").code == 0
    facts = found(sd2rt, "a.png")
    assert facts["digital_source_type"] == "trainedAlgorithmicMedia"
    assert (facts["watermark"], facts["c2pa"]) == (None, {"state": "none"})
    said = sd2rt("verify-image", "a.png")
    assert said.code == 0
    assert "digital source type: trainedAlgorithmicMedia\n" in said.out
    assert said.out.startswith("a.png\n  settings: sd2rt: ")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_no_metadata_leaves_out_all(sd2rt: Command, demo: Path, name: str) -> None:
    assert sd2rt("run", demo, "secret", *FAST, "-o", name, "--no-metadata").code == 0
    content = Path(name).read_bytes()
    for text in (b"secret", b"xmp", b"DigitalSource", b"sd2rt"):
        assert text not in content
    facts = found(sd2rt, name, code=2)
    assert facts["generated"] is False
    assert (facts["settings"], facts["digital_source_type"]) == (None, None)


def test_the_watermark_is_in_the_pixels_alone(sd2rt: Command, demo: Path) -> None:
    for name, words in (("a.png", ()), ("b.png", ("--watermark", "sdv2", "--no-metadata"))):
        assert sd2rt("run", demo, "a", *FAST, *LARGE, "-o", name, *words).code == 0
    np.testing.assert_array_equal(pixels("b.png"), embed(pixels("a.png")))


def test_the_watermark_is_on_the_enlarged_picture(sd2rt: Command, demo: Path, demo_x4: Path) -> None:
    upscale = ("--upscale", demo_x4)
    for name, words in (("a.png", ()), ("b.png", ("--watermark", "sdv2"))):
        said = sd2rt("run", demo, "a", *FAST, "--size", "64x64", *upscale, "-o", name, *words)
        assert said.code == 0, said.err
    assert pixels("a.png").shape == (256, 256, 3)
    np.testing.assert_array_equal(pixels("b.png"), embed(pixels("a.png")))


def test_the_watermark_is_on_the_second_pass(sd2rt: Command, demo: Path) -> None:
    info = PngInfo()
    settings = "Steps: 2, Sampler: Euler, CFG scale: 4, Seed: 3, Size: 128x128, Denoising strength: 0.5"
    info.add_text("parameters", f"a fox\n{settings}, Hires resize: 256x256, Hires upscaler: Lanczos")
    Image.new("RGB", (256, 256)).save("hires.png", pnginfo=info)
    for name, words in (("a.png", ()), ("b.png", ("--watermark", "sdv2"))):
        said = sd2rt("run", demo, "--from", "hires.png", "--threads", "1", "-o", name, *words)
        assert said.code == 0, said.err
    assert pixels("a.png").shape == (256, 256, 3)
    np.testing.assert_array_equal(pixels("b.png"), embed(pixels("a.png")))
    said = sd2rt("run", demo, "--from", "hires.png", "--no-hires", "--watermark", "sdv2", "-o", "c.png")
    assert said.code == 2
    assert "the picture has 128x128" in said.err


def test_the_watermark_is_on_the_pasted_picture(sd2rt: Command, demo: Path, tmp_path: Path) -> None:
    Image.fromarray(natural(256, 320, seed=1)).save(tmp_path / "start.png")
    mask = Image.new("L", (256, 320))
    mask.paste(255, (64, 64, 128, 128))
    mask.save(tmp_path / "mask.png")
    words: list[str | Path] = ["--image", tmp_path / "start.png", "--mask", tmp_path / "mask.png"]
    words += ["--only-masked", "--size", "64x64"]
    for name, more in (("a.png", ()), ("b.png", ("--watermark", "sdv2"))):
        said = sd2rt("run", demo, "a", *FAST, *words, "-o", name, *more)
        assert said.code == 0, said.err
    assert pixels("a.png").shape == (320, 256, 3)
    np.testing.assert_array_equal(pixels("b.png"), embed(pixels("a.png")))


def test_refused_before_anything_is_drawn(
    refused: Refused, demo: Path, credentials: Credentials, tmp_path: Path
) -> None:
    run = ("run", demo, "a", *FAST)
    cert, key = ("--c2pa-cert", credentials.certificate), ("--c2pa-key", credentials.key)
    assert "at least 256x256 pixels, and the picture has 128x128" in refused(2, *run, "--watermark", "sdv2")
    assert "a C2PA certificate without its key" in refused(2, *run, *cert)
    assert "a C2PA key without its certificate" in refused(2, *run, *key)
    assert "a C2PA signature is metadata" in refused(2, *run, *cert, *key, "--no-metadata")
    assert "cannot be read" in refused(2, *run, *cert, "--c2pa-key", tmp_path / "missing")


def test_without_c2pa(
    refused: Refused,
    sd2rt: Command,
    demo: Path,
    credentials: Credentials,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    words = ("--c2pa-cert", credentials.certificate, "--c2pa-key", credentials.key)
    assert "[c2pa]" in refused(6, "run", demo, "a", *FAST, *words)
    assert sd2rt("run", demo, "a", *FAST, "-o", "a.png").code == 0
    assert found(sd2rt, "a.png")["c2pa"] == {"state": "unchecked"}
    said = sd2rt("verify-image", "a.png", "--c2pa-trust", credentials.root)
    assert (said.code, said.out) == (6, "")


def test_files_without_marks(sd2rt: Command) -> None:
    Image.fromarray(natural(300, 300, seed=1)).save("a.png")
    Path("b.png").write_text("no image")
    said = sd2rt("verify-image", "a.png", "b.png", "missing.png")
    assert said.code == 2
    assert said.out.count("\n") == 5
    for text in (
        "a.png has no mark of a generated picture",
        "b.png is not an image",
        "missing.png cannot be",
    ):
        assert text in said.err


def test_marked_rows(sd2rt: Command, demo: Path, credentials: Credentials) -> None:
    Path("rows").write_text('{"prompt": "a", "size": "256x256"}\n{"prompt": "b", "size": "64x64"}\n')
    words = ("--watermark", "sdv2", "--c2pa-cert", credentials.certificate, "--c2pa-key", credentials.key)
    command = ("batch", demo, "rows", "-o", "out", "--steps", "1", "--threads", "1", "--seed", "3")
    said = sd2rt(*command, *words)
    assert said.code == 5
    assert "at least 256x256 pixels, and the picture has 64x64" in said.err
    (file,) = Path("out").glob("*.png")
    facts = found(sd2rt, file)
    assert (facts["digital_source_type"], facts["c2pa"]["state"]) == ("trainedAlgorithmicMedia", "valid")
    # Files with other marks are other files.
    assert sd2rt(*command).code == 0
    assert len([*Path("out").glob("*.png")]) == 3


def test_importing_the_commands_loads_neither_numpy_nor_c2pa() -> None:
    code = (
        "import sys, sd2rt.runtime.cli.run, sd2rt.runtime.cli.provenance.verify_image, "
        "sd2rt.runtime.provenance.stamps\n"
        "print([name for name in ('numpy', 'PIL', 'c2pa', 'cryptography') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
