"""A pipeline with engines on a simulated GPU."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.bundle.schema import symbols_of
from sd2rt.runtime import Pipeline

from ...engines.simulated_gpu import Pace, SimulatedGpu
from ...engines.simulated_tensorrt import build, make_tensorrt

SIZES = {
    "B": (1, 2, 8),
    "R": (1, 4, 24),
    "P": (1, 1, 3),
    "L": (77, 77, 308),
    "h": (8, 8, 64),
    "w": (8, 8, 64),
    "M": (1, 1024, 4096),
}


def compiled(source: Path, target: Path, module: Any, **entry: Any) -> Path:
    """Copy a bundle and add an engine of each part, in the format of the simulated module."""
    shutil.copytree(source, target, copy_function=os.link)
    manifest = read_manifest(target)
    engines = []
    for name, part in manifest.parts.items():
        sizes = {symbol: SIZES[symbol] for symbol in symbols_of(part)}
        engines.append(build(target, name, part, target / part.onnxruntime, [sizes], module=module, **entry))
    (target / "bundle.json").unlink()
    (target / "bundle.json").write_text(manifest.model_copy(update={"engines": tuple(engines)}).to_json())
    return target


Open = Callable[..., tuple[SimulatedGpu, Pipeline]]


@pytest.fixture
def on_gpu(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    opened: list[Pipeline] = []

    def open_pipeline(pace: Pace = "random", seed: int = 0, **options: Any) -> tuple[SimulatedGpu, Pipeline]:
        gpu = SimulatedGpu(pace=pace, seed=seed)
        gpu.install(monkeypatch)
        module = make_tensorrt(gpu)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        bundle = compiled(small_bundle, tmp_path / f"bundle-{len(opened)}", module)
        opened.append(pipeline := Pipeline.open(bundle, device="cuda", threads=1, **options))
        return gpu, pipeline

    yield open_pipeline
    for pipeline in opened:
        pipeline.close()
