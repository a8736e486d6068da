"""Parts of a batch, and the fence around the newest run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.runtime.ray.drawer import DrawnImage, DrawnRow
from sd2rt.runtime.ray.fence import newest_run, writing
from sd2rt.runtime.ray.parts import OutputKind, PartWriter, rows_in_parts


def row(key: str, error: str | None = None) -> DrawnRow:
    image = DrawnImage(f"{key}.png", 5, b"data") if error is None else DrawnImage(error=error)
    return DrawnRow(key, 1, "a", {"width": 64}, [image], error)


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_parts_are_their_own_record(tmp_path: Path, kind: OutputKind) -> None:
    with newest_run(tmp_path) as token:
        writer = PartWriter(tmp_path, kind, "png", token)
        entries = writer.write([row("a"), row("b"), row("c", "no")])
        assert [entry["status"] for entry in entries] == ["done", "done", "failed"]
        writer.write([row("d")])
        files = {path.name: path.read_bytes() for path in tmp_path.glob("*-*")}
        assert len(files) == 3
        # An actor that is killed after it has written writes the same file again.
        writer.write([row("a"), row("b"), row("c", "no")])
        assert {path.name: path.read_bytes() for path in tmp_path.glob("*-*")} == files
        assert rows_in_parts(tmp_path, kind) == {"a", "b", "d"}
        # A row that failed is drawn again.
        assert list(tmp_path.glob("failed-*")) == []


@pytest.mark.parametrize(("kind", "name"), [("parquet", "part-1.parquet"), ("webdataset", "part-1.tar")])
def test_foreign_parts(tmp_path: Path, kind: OutputKind, name: str) -> None:
    (tmp_path / name).write_bytes(b"not one" * 200)
    with pytest.raises(RequestError, match=f"{name} is not a part of a batch .*: choose another folder"):
        rows_in_parts(tmp_path, kind)


def test_only_the_newest_run_writes(tmp_path: Path) -> None:
    writers: list[Callable[[], object]] = []
    with newest_run(tmp_path) as old:
        writers.append(lambda: PartWriter(tmp_path, "folder", "png", old).write([row("a")]))
        with newest_run(tmp_path) as new:
            with pytest.raises(EngineError, match="a newer batch writes to"):
                writers[0]()
            assert list(tmp_path.glob("*.png")) == []
            PartWriter(tmp_path, "folder", "png", new).write([row("b")])
    with pytest.raises(EngineError, match="this one was ended"), writing(tmp_path, old):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["b.png"]


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with newest_run(tmp_path) as token:
        writer = PartWriter(tmp_path / "none", "folder", "png", token)
        with pytest.raises(EngineError, match="a newer batch"):
            writer.write([row("a")])
