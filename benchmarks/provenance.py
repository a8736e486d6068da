"""Cost of each mark of a generated picture at 512x512 and of safety checks, and the changes that each mark survives.

    python -m benchmarks.provenance [--output]

Pictures are of the demo, drawn at 512x512, and natural-like ones by a formula: noise whose amplitude falls with the
frequency. Files are PNGs with all marks, changed by Pillow, and then by exiftool, which copies their tags.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.recording import machine, report
from benchmarks.recording.authority import Credentials, make_credentials
from benchmarks.recording.pictures import natural
from sd2rt.engines.demo.build import build_demo
from sd2rt.runtime import Pipeline
from sd2rt.runtime.images.encode import encode
from sd2rt.runtime.images.formats import FileFormat
from sd2rt.runtime.metadata.png import png_text
from sd2rt.runtime.metadata.save import QUALITY
from sd2rt.runtime.provenance.c2pa import Manifest
from sd2rt.runtime.provenance.reading import read_marks
from sd2rt.runtime.provenance.safety import load_safety
from sd2rt.runtime.provenance.stamps import Stamps
from sd2rt.runtime.provenance.watermark import bits_that_match

SIDE = 512
FORMATS: tuple[FileFormat, ...] = ("png", "jpeg", "webp")
PROMPTS = (
    "a small red circle left of a large blue square on a white background",
    "a large green triangle on a black background",
    "a small yellow star above a large red circle on a white background",
    "a large blue circle on a yellow background",
)
CHANGES: dict[str, Callable[[Image.Image, io.BytesIO], None]] = {
    "none": lambda image, file: image.save(file, "PNG"),
    "JPEG 90": lambda image, file: image.save(file, "JPEG", quality=90),
    "WebP 90": lambda image, file: image.save(file, "WEBP", quality=90),
    "75 % of its size": lambda image, file: image.resize((SIDE * 3 // 4,) * 2, Image.Resampling.LANCZOS).save(
        file, "PNG"
    ),
    "crop of 16 pixels at each side": lambda image, file: image.crop((16, 16, SIDE - 16, SIDE - 16)).save(
        file, "PNG"
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.provenance", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--check-repetitions", type=int, default=5)
    report.add_output(parser)
    options = parser.parse_args()
    facts = machine.facts()
    # What cannot be read back is counted here.
    warnings.simplefilter("ignore", UserWarning)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        credentials = make_credentials(folder / "authority")
        drawn, recipe = _demo_pictures(folder / "demo")
        kinds = {"demo": drawn, "natural-like": [_natural(seed) for seed in range(8)]}
        costs = _costs(kinds["natural-like"][0], recipe, credentials, options.repetitions)
        checks = _checks(kinds["natural-like"][0], options.check_repetitions)
        survival = [
            case
            for kind, images in kinds.items()
            for case in _survival(kind, images, recipe, credentials, folder)
        ]
    result = {
        "benchmark": "provenance",
        "repetitions": options.repetitions,
        "costs": costs,
        "check_repetitions": options.check_repetitions,
        "checks": checks,
        "survival": survival,
        "pictures": f"{len(drawn)} pictures of the demo and 8 natural-like ones, which are noise whose amplitude "
        "falls with the frequency; all are 512x512 PNGs with all marks.",
        "machine": facts,
    }
    rows = [
        [case["kind"], case["change"], case["settings"], case["xmp"], case["watermark"], case["c2pa"]]
        for case in survival
    ]
    report.finish(
        result, ("pictures", "change", "settings", "xmp", "watermark", "c2pa"), rows, options.output
    )


def _natural(seed: int) -> Image.Image:
    return Image.fromarray(natural(SIDE, SIDE, seed))


def _demo_pictures(folder: Path) -> tuple[list[Image.Image], dict[str, Any]]:
    build_demo("demo", folder)
    with Pipeline.open(folder, device="cpu") as pipeline:
        output = pipeline(list(PROMPTS), width=SIDE, height=SIDE, num_inference_steps=10, seed=1)
    return output.images, output.recipes[0]


def _costs(
    image: Image.Image, recipe: dict[str, Any], credentials: Credentials, repetitions: int
) -> list[dict[str, Any]]:
    marked = Stamps.of(watermark="sdv2", metadata=False)
    signing = Stamps.of(c2pa_cert=credentials.certificate, c2pa_key=credentials.key)
    text = png_text(recipe)

    def encoded(file_format: FileFormat, picture: Image.Image, xmp: str | None) -> bytes:
        comment, description = text["parameters"], text["sd2rt"]
        return encode(
            picture, file_format, text, quality=QUALITY, comment=comment, description=description, xmp=xmp
        )

    stamped = marked.on_pixels(image)
    costs: list[dict[str, Any]] = []
    for file_format in FORMATS:
        packet = signing.xmp(False)
        without, with_xmp = encoded(file_format, image, None), encoded(file_format, image, packet)
        signed = signing.signed(with_xmp, file_format, False)
        with_watermark = encoded(file_format, stamped, packet)
        costs += [
            # The encoder's own time is far larger and scatters more, so that only the packet's is meant here.
            _cost("XMP", file_format, lambda: signing.xmp(False), len(with_xmp) - len(without), repetitions),
            # Setting it and reading it back.
            _cost(
                "watermark",
                file_format,
                lambda data=with_watermark, kind=file_format: marked.applied(  # type: ignore[misc]
                    image, kind, False, lambda pixels, xmp: data
                ),
                len(with_watermark) - len(with_xmp),
                repetitions,
            ),
            _cost(
                "C2PA",
                file_format,
                lambda data=with_xmp, kind=file_format: signing.signed(data, kind, False),  # type: ignore[misc]
                len(signed) - len(with_xmp),
                repetitions,
            ),
        ]
    return costs


def _checks(image: Image.Image, repetitions: int) -> list[dict[str, Any]]:
    """Cost of safety checks, in turns, on all processors together."""
    checks = {
        "a function that returns False": load_safety(lambda picture: False),
        "opennsfw": load_safety("opennsfw"),
    }
    milliseconds: dict[str, list[float]] = {name: [] for name in checks}
    for repetition in range(repetitions + 1):
        for name, safety in checks.items():
            began = time.process_time()
            safety.check(image)
            # The first call warms up.
            if repetition:
                milliseconds[name].append((time.process_time() - began) * 1000)
    return [
        {"check": name, "milliseconds": report.summary(values, 3)} for name, values in milliseconds.items()
    ]


def _png(pixels: Image.Image, xmp: str | None, text: dict[str, str]) -> bytes:
    return encode(pixels, "png", text, xmp=xmp)


def _cost(
    mark: str, file_format: FileFormat, call: Callable[[], object], size: int, repetitions: int
) -> dict[str, Any]:
    call()
    # The process's own time on the CPU: others' work does not count.
    milliseconds = []
    for _ in range(repetitions):
        began = time.process_time()
        call()
        milliseconds.append((time.process_time() - began) * 1000)
    return {
        "mark": mark,
        "format": file_format,
        "milliseconds": report.summary(milliseconds, 3),
        "bytes": size,
    }


def _survival(
    kind: str, images: list[Image.Image], recipe: dict[str, Any], credentials: Credentials, folder: Path
) -> list[dict[str, Any]]:
    stamps = Stamps.of(watermark="sdv2", c2pa_cert=credentials.certificate, c2pa_key=credentials.key)
    originals, unmarked = [], []
    for index, image in enumerate(images):
        unmarked.append(folder / f"{kind}-{index}-unmarked.png")
        image.save(unmarked[-1])
        file_of = partial(_png, text=png_text(recipe))
        path = folder / f"{kind}-{index}.png"
        path.write_bytes(stamps.applied(image, "png", False, file_of))
        originals.append(path)
    cases = [_read(kind, "before any mark", unmarked), _read(kind, "none", originals)]
    for change, save in CHANGES.items():
        if change == "none":
            cases.append(_read(kind, "saved again as PNG", [_changed(path, save) for path in originals]))
            continue
        changed = [_changed(path, save) for path in originals]
        cases.append(_read(kind, change, changed))
        for path, original in zip(changed, originals, strict=True):
            command = [
                "exiftool",
                "-overwrite_original",
                "-TagsFromFile",
                str(original),
                "-all:all",
                str(path),
            ]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        cases.append(_read(kind, f"{change}, tags copied", changed))
    return cases


def _changed(path: Path, save: Callable[[Image.Image, io.BytesIO], None]) -> Path:
    file = io.BytesIO()
    with Image.open(path) as image:
        save(Image.fromarray(np.asarray(image)), file)
    data = file.getvalue()
    suffix = {b"\x89P": ".png", b"\xff\xd8": ".jpg", b"RI": ".webp"}[data[:2]]
    changed = path.with_name(f"{path.stem}-changed{suffix}")
    changed.write_bytes(data)
    return changed


def _read(kind: str, change: str, paths: list[Path]) -> dict[str, Any]:
    marks = [read_marks(path) for path in paths]
    bits = [bits_that_match(np.asarray(Image.open(path).convert("RGB"))) for path in paths]
    return {
        "kind": kind,
        "change": change,
        "pictures": len(paths),
        "settings": sum("sd2rt" in each.texts or "parameters" in each.texts for each in marks),
        "xmp": sum(each.source_type is not None for each in marks),
        "watermark": sum(each.watermarked for each in marks),
        "c2pa": sum(isinstance(each.manifest, Manifest) and not each.altered for each in marks),
        "matching_bits": round(float(np.mean(bits)), 2),
    }


if __name__ == "__main__":
    main()
