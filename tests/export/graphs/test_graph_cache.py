"""Cached graphs are reused for the same network, and give the same bundle as exporting."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
from safetensors.torch import load_file, save_file

from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.part_interface import Interface
from sd2rt.engines.bundle.schema import Part, Precision
from sd2rt.engines.demo.files import DEMO_NAMES, GRAPHS
from sd2rt.engines.demo.template import read_template
from sd2rt.engines.weights.graph_archive import EXPORTERS, GraphArchive
from sd2rt.export.build import build, packaged_graphs, part_interfaces, part_module
from sd2rt.export.checkpoints.checkpoint import Checkpoint, open_checkpoint
from sd2rt.export.checkpoints.pipeline_configs import NetworkName
from sd2rt.export.checkpoints.tiny_configs import DEMOS, SMALL
from sd2rt.export.graphs import graph_cache
from sd2rt.export.graphs.graph_cache import (
    GRAPH_REVISION,
    graph_file,
    make_part,
    packaged_exporters,
)
from sd2rt.export.graphs.onnx_part import export_part
from sd2rt.export.testing.random_weights import random_checkpoint

from ...made_once import MadeOnce
from ..conftest import CONSTRAINTS


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The small checkpoint's networks with other weights, many of them equal, as in networks that are not trained."""
    folder = random_checkpoint(tmp_path_factory.mktemp("other") / "other", configs=SMALL, seed=9)
    for path in folder.glob("*/*.safetensors"):
        weights = load_file(path)
        for number, (name, tensor) in enumerate(sorted(weights.items())):
            if name.endswith(".bias"):
                tensor.zero_()
            elif tensor.ndim == 1:
                tensor.fill_(1)
            elif number % 7 == 0:
                tensor.fill_(tensor.flatten()[0])
        save_file(weights, path)
    return open_checkpoint(str(folder))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "graphs"


@pytest.fixture
def filled(cache: Path, small_bundle: Path, small_checkpoint: Path, made_once: MadeOnce) -> Path:
    """The same, with the graphs of the small bundle, which its build has kept."""
    cache.mkdir(parents=True)
    for name in graph_names(small_bundle, open_checkpoint(str(small_checkpoint))).values():
        shutil.copy(made_once.shared / "graphs" / name, cache)
    return cache


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of parts, recorded when they are exported."""
    parts: list[str] = []

    def counted(name: PartName, *arguments: Any, **options: Any) -> Part:
        parts.append(name)
        return export_part(name, *arguments, **options)

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
    small_bundle: Path, other_checkpoint: Checkpoint, filled: Path, exported: list[str], tmp_path: Path
) -> None:
    build(other_checkpoint, tmp_path / "bundle")
    assert exported == []
    kept = {path.name: path.read_bytes() for path in filled.iterdir()}

    for path in filled.iterdir():
        path.unlink()
    (tmp_path / "bundle").rename(tmp_path / "filled")
    build(other_checkpoint, tmp_path / "bundle")
    assert exported == ["text_encoder", "denoiser", "decoder", "encoder"]
    assert _files(tmp_path / "filled") == _files(tmp_path / "bundle") != _files(small_bundle)
    # Archives do not depend on the weights.
    assert {path.name: path.read_bytes() for path in filled.iterdir()} == kept


def test_a_damaged_graph_is_exported_again(
    small_checkpoint: Path, filled: Path, exported: list[str], tmp_path: Path
) -> None:
    small = open_checkpoint(str(small_checkpoint))
    build(small, tmp_path / "bundle")
    assert exported == []
    path = filled / graph_names(tmp_path / "bundle", small)["text_encoder"]
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


def test_the_package_has_the_demos_graphs() -> None:
    expected: set[str] = set()
    for name in DEMO_NAMES:
        for precision in get_args(Precision):
            checkpoint = open_checkpoint(name)
            expected |= set(
                packaged_graphs(checkpoint, precision, part_interfaces(checkpoint, precision)).values()
            )
    stale = "the packaged graphs are stale: run 'python -m benchmarks.demo.graphs'"
    assert {path.name for path in GRAPHS.glob("*.zip")} == expected, stale
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE))
    for path in GRAPHS.glob("*.zip"):
        archive = GraphArchive.read(path.read_bytes())
        assert archive.exporters == {package: pinned[package] for package in EXPORTERS}, stale
        assert archive.revision == GRAPH_REVISION, stale


@pytest.mark.parametrize("precision", get_args(Precision))
def test_packaged_graphs_serve_any_checkpoint_and_exporters(
    cache: Path, exported: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    packaged = read_template("demo", precision).manifest["exporter"]
    checkpoint = open_checkpoint(str(random_checkpoint(tmp_path / "random", configs=DEMOS["base"])))
    first = build(checkpoint, tmp_path / "first" / "bundle", precision=precision).manifest
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: version(name) if name == "sd2rt" else "99.0"
    )
    second = build(checkpoint, tmp_path / "second" / "bundle", precision=precision).manifest
    assert first == second
    # The versions that exported the graphs, not the installed ones.
    assert first.exporter == packaged
    assert not exported
    assert not cache.exists()


@pytest.mark.usefixtures("cache")
def test_graphs_of_other_exporters_are_not_mixed_in(exported: list[str], tmp_path: Path) -> None:
    checkpoint = open_checkpoint("demo")
    interfaces = part_interfaces(checkpoint, "fp32")
    files = packaged_graphs(checkpoint, "fp32", interfaces)
    packaged = packaged_exporters(files.values())
    assert packaged is not None
    # The package has not all graphs of this bundle: the installed exporters make them.
    assert packaged_exporters([*files.values(), "decoder-of-another-configuration.zip"]) is None
    for exporters in (packaged, {**packaged, "torch": "99.0"}):
        assert not exported
        make_part(
            "text_encoder",
            part_module(checkpoint, "text_encoder", "fp32"),
            interfaces["text_encoder"],
            tmp_path,
            "fp32",
            checkpoint.parts.config("text_encoder"),
            exporters,
        )
    assert exported == ["text_encoder"]
