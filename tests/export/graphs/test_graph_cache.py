"""Cached graphs are reused for the same network, and give the same bundle as exporting."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.part_interface import Interface
from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.demo.files import GRAPHS
from sd2rt.export.build import build
from sd2rt.export.checkpoints.checkpoint import Checkpoint, open_checkpoint
from sd2rt.export.checkpoints.demo import DEMO_NAMES
from sd2rt.export.checkpoints.pipeline_configs import NetworkName
from sd2rt.export.checkpoints.tiny_configs import DEMOS, SMALL
from sd2rt.export.graphs import graph_cache
from sd2rt.export.graphs.graph_cache import graph_file
from sd2rt.export.graphs.onnx_part import export_part
from sd2rt.export.testing.random_weights import random_checkpoint


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The small checkpoint's networks with other weights."""
    return open_checkpoint(
        str(random_checkpoint(tmp_path_factory.mktemp("other") / "other", configs=SMALL, seed=9))
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "graphs"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of parts, recorded when they are exported."""
    parts: list[str] = []

    def counted(name: PartName, *arguments: Any) -> Part:
        parts.append(name)
        return export_part(name, *arguments)

    monkeypatch.setattr("sd2rt.export.graphs.graph_cache.export_part", counted)
    return parts


_NETWORKS: dict[PartName, NetworkName] = {
    "text_encoder": "text_encoder",
    "denoiser": "unet",
    "decoder": "vae",
    "encoder": "vae",
    "depth_estimator": "depth_estimator",
}


def graph_names(bundle: Path, checkpoint: Checkpoint) -> dict[PartName, str]:
    """Archive name of each exported part's graphs."""
    return {
        name: graph_file(name, Interface(part.inputs, part.outputs), part.precision, config)
        for name, part in read_manifest(bundle).parts.items()
        if name in _NETWORKS and (config := checkpoint.parts.config(_NETWORKS[name]))
    }


def _files(bundle: Path) -> dict[str, bytes]:
    return {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*.*")}


def test_a_kept_graph_gives_the_bundle_that_exporting_gives(
    small_checkpoint: Path,
    other_checkpoint: Checkpoint,
    cache: Path,
    exported: list[str],
    tmp_path: Path,
) -> None:
    small = open_checkpoint(str(small_checkpoint))
    parts = ["text_encoder", "denoiser", "decoder", "encoder"]
    build(small, tmp_path / "first")
    build(other_checkpoint, tmp_path / "bundle")
    assert exported == parts
    kept = {path.name: path.read_bytes() for path in cache.iterdir()}
    assert set(kept) == set(graph_names(tmp_path / "first", small).values())

    for path in cache.iterdir():
        path.unlink()
    (tmp_path / "bundle").rename(tmp_path / "filled")
    build(other_checkpoint, tmp_path / "bundle")
    assert exported == parts * 2
    assert _files(tmp_path / "filled") == _files(tmp_path / "bundle") != _files(tmp_path / "first")
    # Archives do not depend on the weights.
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == kept


def test_a_damaged_graph_is_exported_again(
    small_checkpoint: Path, cache: Path, exported: list[str], tmp_path: Path
) -> None:
    small = open_checkpoint(str(small_checkpoint))
    build(small, tmp_path / "bundle")
    path = cache / graph_names(tmp_path / "bundle", small)["text_encoder"]
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (b"", b"PK", whole[:middle] + b"damaged" + whole[middle + 7 :]):
        path.write_bytes(damaged)
        exported.clear()
        build(small, tmp_path / "bundle", again=True)
        assert exported == ["text_encoder"]
        assert path.read_bytes() == whole


def test_other_versions_and_revisions_have_other_graphs(
    small_bundle: Path,
    small_half_bundle: Path,
    small_checkpoint: Path,
    small_v_bundle: Path,
    small_v_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = open_checkpoint(str(small_checkpoint))
    expected = graph_names(small_bundle, small)
    assert graph_names(small_v_bundle, open_checkpoint(str(small_v_checkpoint))) == expected
    assert not set(graph_names(small_half_bundle, small).values()) & set(expected.values())
    version = importlib.metadata.version
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda name: f"{version(name).partition('+')[0]}+cu999")
        assert graph_names(small_bundle, small) == expected
        patch.setattr(importlib.metadata, "version", lambda name: f"{version(name)}.post1")
        assert not set(graph_names(small_bundle, small).values()) & set(expected.values())
    monkeypatch.setattr(graph_cache, "GRAPH_REVISION", graph_cache.GRAPH_REVISION + 1)
    assert not set(graph_names(small_bundle, small).values()) & set(expected.values())


@pytest.mark.usefixtures("pinned_exporters", "cache")
def test_the_packaged_graphs_are_the_demos(exported: list[str], tmp_path: Path) -> None:
    expected: set[str] = set()
    for name, kind in DEMO_NAMES.items():
        path = random_checkpoint(tmp_path / kind, configs=DEMOS[kind])
        checkpoint = open_checkpoint(str(path))
        build(checkpoint, tmp_path / "bundles" / name)
        expected |= set(graph_names(tmp_path / "bundles" / name, checkpoint).values())
    assert not exported, "the packaged graphs are stale: run 'python -m benchmarks.demo.graphs'"
    assert {path.name for path in GRAPHS.glob("*.zip")} == expected
