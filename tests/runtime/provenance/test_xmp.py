"""XMP packets, read by other programs."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.recording.pictures import natural
from sd2rt.runtime.images.encode import encode
from sd2rt.runtime.images.read import MAX_PIXELS, decode_with_texts
from sd2rt.runtime.provenance.xmp import (
    VOCABULARY,
    SourceType,
    read_source_type,
    source_type_of,
    xmp_packet,
)

FORMATS: Any = ("png", "jpeg", "webp")
SOURCE_TYPES: tuple[SourceType, ...] = ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia")


def picture() -> Image.Image:
    return Image.fromarray(natural(96, 64, seed=2))


def test_source_types() -> None:
    assert (source_type_of(False), source_type_of(True)) == SOURCE_TYPES


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("source_type", SOURCE_TYPES)
def test_is_read_by_pillow(file_format: Any, source_type: SourceType) -> None:
    pytest.importorskip("defusedxml", reason="Pillow reads XMP with defusedxml, which is not installed")
    data = encode(picture(), file_format, {"parameters": "a fox"}, xmp=xmp_packet(source_type))
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        description = image.getxmp()["xmpmeta"]["RDF"]["Description"]
    assert description["DigitalSourceType"] == VOCABULARY + source_type
    assert description["CreatorTool"].startswith("sd2rt ")


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("source_type", SOURCE_TYPES)
def test_is_read_by_exiftool(file_format: Any, source_type: SourceType, tmp_path: Path) -> None:
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool is not installed (Debian's libimage-exiftool-perl)")
    file = tmp_path / f"a.{file_format}"
    comment = "a füchs\nSteps: 3"
    file.write_bytes(encode(picture(), file_format, {}, comment=comment, xmp=xmp_packet(source_type)))
    command = ["exiftool", "-j", "-n", "-validate", "-warning", "-XMP-iptcExt:all", "-XMP-xmp:all", str(file)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    (found,) = json.loads(done.stdout)
    assert found["DigitalSourceType"] == VOCABULARY + source_type
    assert found["CreatorTool"].startswith("sd2rt ")
    assert "xmp" not in str(found.get("Warning", "")).lower()


@pytest.mark.parametrize("file_format", FORMATS)
def test_pixels_are_those_without_it(file_format: Any) -> None:
    with_it, without = (
        encode(picture(), file_format, {"parameters": "a fox"}, comment="a fox", xmp=xmp)
        for xmp in (xmp_packet("trainedAlgorithmicMedia"), None)
    )
    first, texts, xmp = decode_with_texts(with_it, "the image", MAX_PIXELS)
    second, texts_without, none = decode_with_texts(without, "the image", MAX_PIXELS)
    np.testing.assert_array_equal(np.asarray(first), np.asarray(second))
    assert texts["parameters"] == texts_without["parameters"] == "a fox"
    assert read_source_type(xmp) == "trainedAlgorithmicMedia"
    assert none == ""


@pytest.mark.parametrize(
    ("xmp", "source_type"),
    [
        (f'<a Iptc4xmpExt:DigitalSourceType="{VOCABULARY}digitalCapture"/>', "digitalCapture"),
        (f"<a x:DigitalSourceType = '{VOCABULARY}trainedAlgorithmicMedia'/>", "trainedAlgorithmicMedia"),
        (f"<x:DigitalSourceType>\n {VOCABULARY}humanEdits </x:DigitalSourceType>", "humanEdits"),
        (f'<x:DigitalSourceType rdf:resource="{VOCABULARY}composite"/>', "composite"),
        ("<x:DigitalSourceType>elsewhere</x:DigitalSourceType>", None),
        (f"<x:Other>{VOCABULARY}composite</x:Other>", None),
        (f"<x:DigitalSourceType></x:DigitalSourceType><b>{VOCABULARY}composite</b>", None),
        ("", None),
    ],
)
def test_packets_of_other_programs(xmp: str, source_type: str | None) -> None:
    assert read_source_type(xmp) == source_type


def test_packets_that_exiftool_writes(tmp_path: Path) -> None:
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool is not installed (Debian's libimage-exiftool-perl)")
    for file_format in ("png", "jpg", "webp", "tif"):
        file = tmp_path / f"a.{file_format}"
        picture().save(file)
        option = f"-XMP-iptcExt:DigitalSourceType={VOCABULARY}algorithmicMedia"
        subprocess.run(["exiftool", option, "-n", str(file)], check=True, capture_output=True, timeout=60)
        xmp = decode_with_texts(file.read_bytes(), "the image", MAX_PIXELS)[2]
        assert read_source_type(xmp) == "algorithmicMedia", file_format
