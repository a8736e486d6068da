"""Engines with replaced weights are compiled by TensorRT for RTX once, and cached."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd2rt.engines.bundle.cache import CACHE_VARIABLE
from sd2rt.engines.bundle.engine_entry import EngineEntry
from sd2rt.engines.bundle.files import describe
from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.errors import BuildError
from sd2rt.engines.interface import Array
from sd2rt.engines.tensorrt import lora_engines as rebuilt
from sd2rt.engines.tensorrt.compile.add_engines import build_engines
from sd2rt.engines.tensorrt.lora_engines import rebuilt_engine, weights_digest
from sd2rt.engines.weights.initializers import Weights

from .compile.test_add_engines import ADA, SIZE, copy

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.filterwarnings("ignore:compiling .* with new weights, once:RuntimeWarning")
NAME = "encoder.layers.0.mlp.fc1.weight"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "rebuilt"


@pytest.fixture(scope="module")
def built(demo_half_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EngineEntry]:
    bundle = copy(demo_half_bundle, tmp_path_factory.mktemp("built"))
    (entry,) = build_engines(bundle, SIZE, ADA, parts=("text_encoder",)).made
    return bundle, entry


def test_once_for_each_set_of_weights(
    built: tuple[Path, EngineEntry], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, entry = built
    part = open_part(bundle)
    weights = Weights.of(part, bundle / part.onnx)
    other = {NAME: np.random.default_rng(0).standard_normal(weights[NAME].shape).astype(np.float16)}
    folder, made = rebuilt_engine(bundle, "text_encoder", part, entry, other)
    assert (made.profiles, made.compute_capabilities) == (entry.profiles, entry.compute_capabilities)
    assert made.file.sha256 != entry.file.sha256
    assert made.weights == weights_digest(other)
    assert describe(folder, made.file.path) == made.file

    def no_more(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was compiled again")

    monkeypatch.setattr(rebuilt, "compile_in_process", no_more)
    assert rebuilt_engine(bundle, "text_encoder", part, entry, dict(other)) == (folder, made)
    with pytest.raises(AssertionError, match="compiled again"):
        rebuilt_engine(bundle, "text_encoder", part, entry, {NAME: other[NAME] + np.float16(1)})
    assert [path.name for path in cache.iterdir()] == [folder.name]


def test_eight_are_kept(
    built: tuple[Path, EngineEntry], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, entry = built
    for index in range(10):
        (cache / f"{index}").mkdir(parents=True)
        os.utime(cache / f"{index}", (index, index))

    def fail(*_: Any, **__: Any) -> Any:
        raise BuildError("no")

    monkeypatch.setattr(rebuilt, "compile_in_process", fail)
    part = open_part(bundle)
    value: Array = Weights.of(part, bundle / part.onnx).read(NAME)
    with pytest.raises(BuildError, match="no"):
        rebuilt_engine(bundle, "text_encoder", part, entry, {NAME: value})
    # There is room for the new engine, and nothing unfinished.
    assert sorted(path.name for path in cache.iterdir()) == ["3", "4", "5", "6", "7", "8", "9"]


def test_the_digest_is_of_names_shapes_and_values() -> None:
    a = {"x": np.zeros((2, 3), np.float16), "y": np.ones(2, np.float16)}
    assert weights_digest(a) == weights_digest(dict(reversed(a.items())))
    others: list[dict[str, Array]] = [
        {"x": a["x"].reshape(3, 2), "y": a["y"]},
        {"x": a["x"].astype(np.float32), "y": a["y"]},
        {"x": a["x"], "z": a["y"]},
        {"x": a["x"] + np.float16(1), "y": a["y"]},
    ]
    assert len({weights_digest(weights) for weights in (a, *others)}) == 5


def open_part(bundle: Path) -> Part:
    return read_manifest(bundle).parts["text_encoder"]
