"""Archives of graphs without weights, and parts filled from them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sd2rt.engines.interface import Array
from sd2rt.engines.weights.graph_archive import INITIALIZERS, TILED, GraphArchive
from sd2rt.engines.weights.initializers import Weights

EXPORTERS = {"torch": "1.0", "onnx": "2.0"}


@pytest.fixture(params=["text_encoder", "denoiser", "decoder"])
def part(request: pytest.FixtureRequest, small_bundle: Path) -> Path:
    return small_bundle / str(request.param)


def weights_in(part: Path) -> dict[str, Array]:
    weights = Weights(part / INITIALIZERS)
    return {name: weights.read(name) for name in weights}


def test_a_part_is_its_archive_and_its_weights(part: Path, tmp_path: Path) -> None:
    archive = GraphArchive.of_part(part, EXPORTERS, 7)
    archive.store(tmp_path / "graphs" / "part.zip")
    content = (tmp_path / "graphs" / "part.zip").read_bytes()
    read = GraphArchive.read(content)
    assert read == archive
    assert (read.exporters, read.revision) == (EXPORTERS, 7)
    read.write(tmp_path / "part", weights_in(part))
    # The graph for tiles has an archive of its own.
    expected = {path.name: path.read_bytes() for path in part.iterdir() if path.name != TILED}
    assert {path.name: path.read_bytes() for path in (tmp_path / "part").iterdir()} == expected
    read.store(tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == content


def test_an_archive_holds_no_weights(part: Path, tmp_path: Path) -> None:
    archive = GraphArchive.of_part(part, EXPORTERS, 7)
    archive.write(tmp_path, {name: value + 1 for name, value in weights_in(part).items()})
    assert GraphArchive.of_part(tmp_path, EXPORTERS, 7) == archive


def test_weights_of_another_network(part: Path, tmp_path: Path) -> None:
    archive, weights = GraphArchive.of_part(part, EXPORTERS, 7), weights_in(part)
    name = next(name for name, value in weights.items() if value.ndim == 2)
    with pytest.raises(ValueError, match=rf"^{name} has the shape \[3\], expected \["):
        archive.write(tmp_path, {**weights, name: np.zeros(3, np.float32)})
    del weights[name]
    with pytest.raises(KeyError, match=name):
        archive.write(tmp_path, weights)


def test_an_archive_of_a_graph_alone(tmp_path: Path) -> None:
    archive = GraphArchive({TILED: b"graph"}, b"", EXPORTERS, 7)
    assert archive.weight_map() is None
    archive.write(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == [TILED]


def test_damaged_archives(part: Path, tmp_path: Path) -> None:
    GraphArchive.of_part(part, EXPORTERS, 7).store(tmp_path / "part.zip")
    whole = (tmp_path / "part.zip").read_bytes()
    middle = len(whole) // 2
    for damaged in (b"", b"PK", whole[:middle], whole[:middle] + b"damaged" + whole[middle + 7 :]):
        with pytest.raises(ValueError, match=r"^it is not an archive of graphs"):
            GraphArchive.read(damaged)
    for exporter in (b"{", b"[]", b"{}", b'{"exporters": {}}'):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as target:
            target.writestr("rest", b"")
            target.writestr("exporter.json", exporter)
        with pytest.raises(ValueError, match=r"^it is not an archive of graphs"):
            GraphArchive.read(content.getvalue())
