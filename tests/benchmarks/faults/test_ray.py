"""Images that a search for faults of Ray jobs finds in files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.faults.ray_files import KINDS, Images, images_in
from sd2rt.runtime.ray.drawer import DrawnImage, DrawnRow
from sd2rt.runtime.ray.fence import newest_run
from sd2rt.runtime.ray.parts import KINDS as OUTPUT_KINDS
from sd2rt.runtime.ray.parts import OutputKind, PartWriter
from sd2rt.runtime.rows.record import BatchRecord

pytest.importorskip("pyarrow")


def row(key: str, *colors: str, error: str | None = None) -> DrawnRow:
    images = []
    for color in colors:
        file = io.BytesIO()
        Image.new("RGB", (8, 8), color).save(file, "png")
        images.append(DrawnImage(f"{key}-{color}.png", 1, file.getvalue()))
    return DrawnRow(key, 1, "a", {}, images or [DrawnImage(error=error)], error)


def written(folder: Path, kind: OutputKind, *batches: list[DrawnRow]) -> Images:
    folder.mkdir()
    with newest_run(folder) as token:
        for batch in batches:
            entries = PartWriter(folder, kind, "png", token).write(batch)
            if kind == "folder":
                for entry in entries:
                    BatchRecord(folder).add(entry)
    return images_in(folder, kind)


def test_all_kinds_are_searched() -> None:
    assert KINDS == OUTPUT_KINDS


@pytest.mark.parametrize("kind", OUTPUT_KINDS)
def test_what_is_found(tmp_path: Path, kind: OutputKind) -> None:
    found = written(tmp_path / "a", kind, [row("a", "red", "blue")], [row("b", "red")])
    assert found.keys() == {("a", 0), ("a", 1), ("b", 0)}
    assert found["a", 0] == found["b", 0] != found["a", 1]
    with pytest.raises(ValueError, match="image 0 of row a is there twice"):
        written(tmp_path / "b", kind, [row("a", "red")], [row("a", "red"), row("b", "blue")])


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_a_row_that_failed_is_a_fault(tmp_path: Path, kind: OutputKind) -> None:
    with pytest.raises(ValueError, match="no memory"):
        written(tmp_path / "a", kind, [row("a", error="no memory")])


def test_images_without_a_row(tmp_path: Path) -> None:
    written(tmp_path / "a", "folder", [row("a", "red")])
    (tmp_path / "a" / "b.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b\.png.* in no row"):
        images_in(tmp_path / "a", "folder")
    assert json.loads((tmp_path / "a" / "manifest.jsonl").read_text())["row"] == "a"
