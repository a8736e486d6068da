"""The child process that compiles an engine: its tasks and its answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sd2rt.engines.bundle.engine_entry import BuilderOptions
from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.errors import BuildError, RequestError
from sd2rt.engines.tensorrt.compile.profiles import plan_engines
from sd2rt.engines.tensorrt.compile.worker_process import compile_in_process
from sd2rt.engines.tensorrt.compile.worker_protocol import BuildTask
from sd2rt.engines.weights.initializers import Weights

from .test_add_engines import ADA, SIZE, TEXT

pytest.importorskip("tensorrt_rtx")


def text_encoder(
    bundle: Path, target: Path, *, options: BuilderOptions = ADA, replaced: Path | None = None
) -> BuildTask:
    manifest = read_manifest(bundle)
    (plan,) = plan_engines(manifest, TEXT, SIZE)
    part = manifest.parts["text_encoder"]
    return BuildTask(
        name="text_encoder",
        part=part,
        onnx=str(bundle / part.onnx),
        profiles=plan.profiles,
        options=options,
        target=str(target),
        replaced=None if replaced is None else str(replaced),
    )


def test_replaced_weights(demo_half_bundle: Path, tmp_path: Path) -> None:
    """The engine contains the replaced weights, and not the graph's."""
    part = read_manifest(demo_half_bundle).parts["text_encoder"]
    weights = Weights.of(part, demo_half_bundle / part.onnx)
    name = "encoder.layers.0.mlp.fc1.bias"
    rng = np.random.default_rng(0)
    sizes = {}
    own = weights.read(name)
    for what, array in {"own": own, "other": rng.standard_normal(own.shape)}.items():
        initializer, value = weights.replacement(name, array)
        np.savez(tmp_path / f"{what}.npz", allow_pickle=False, **{initializer: value})
        compile_in_process(text_encoder(demo_half_bundle, tmp_path / what, replaced=tmp_path / f"{what}.npz"))
        sizes[what] = (tmp_path / what).read_bytes()
    half = value.tobytes()
    assert half in sizes["other"]
    assert half not in sizes["own"]


def test_a_replacement_of_nothing(demo_half_bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", nothing=np.zeros(3, np.float16))
    with pytest.raises(BuildError, match="nothing cannot be replaced"):
        compile_in_process(text_encoder(demo_half_bundle, tmp_path / "engine", replaced=tmp_path / "a.npz"))


def test_an_error_comes_back_as_its_own_class(demo_half_bundle: Path, tmp_path: Path) -> None:
    options = BuilderOptions(backend="tensorrt-rtx", compute_capabilities=("9.0",))
    with pytest.raises(RequestError, match=r"^--sm 90: tensorrt-rtx builds for 75, 80"):
        compile_in_process(text_encoder(demo_half_bundle, tmp_path / "engine", options=options))
    assert not list(tmp_path.iterdir())


def test_progress(demo_half_bundle: Path, tmp_path: Path) -> None:
    fractions: list[float] = []
    built = compile_in_process(text_encoder(demo_half_bundle, tmp_path / "engine"), fractions.append)
    assert len(fractions) > 3
    assert all(0 < fraction <= 1 for fraction in fractions)
    assert (built.compute_capabilities, built.hardware_compatible) == (("8.9",), False)
    assert {path.name for path in tmp_path.iterdir()} == {"engine", "engine.json"}
