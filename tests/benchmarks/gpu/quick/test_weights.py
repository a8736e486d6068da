"""Weights drawn by name: the same on every machine, with the moments of those they replace."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu.quick.reference import Reference
from benchmarks.gpu.quick.weights import (
    Moments,
    copy_graphs,
    draw,
    measure_moments,
    weight_files,
    write_weights,
)
from sd2rt.engines.weights.initializers import Weights


def test_drawn_values_are_fixed() -> None:
    values = draw("denoiser/conv_in.weight", 1 << 18, Moments(0.25, 0.5))
    assert values.dtype == np.float16
    digest = hashlib.sha256(values.tobytes()).hexdigest()
    assert digest == "bd4b41a27a4f72cfce658f63062c13c4086c3513ae11c40b8568a399cd9cb146"
    assert abs(values.astype(np.float64).mean() - 0.25) < 0.01
    assert abs(values.astype(np.float64).std() - 0.5) < 0.01
    assert (draw("denoiser/conv_in.weight", 5, Moments(0.25, 0.5)) == values[:5]).all()
    assert not (draw("denoiser/conv_in.bias", 1 << 18, Moments(0.25, 0.5)) == values).all()


def test_a_bundle_is_whole_again(small_half_bundle: Path, small_bundle: Path, tmp_path: Path) -> None:
    before = hashlib.sha256((small_half_bundle / "denoiser/model.onnx.data").read_bytes()).hexdigest()
    moments = measure_moments(small_half_bundle)
    for name, source in (("half", small_half_bundle), ("full", small_bundle)):
        copy_graphs(source, tmp_path / name)
        assert not (tmp_path / name / "denoiser/model.onnx.data").exists()
        write_weights(tmp_path / name, moments)
        for file in weight_files(source):
            assert (tmp_path / name / file.path).stat().st_size == (source / file.path).stat().st_size
    half, full = (Weights(tmp_path / name / "denoiser/initializers.json") for name in ("half", "full"))
    for key in half:
        assert (half.read(key).astype(np.float32) == full.read(key)).all(), key
    # The source may share its files with other bundles.
    assert hashlib.sha256((small_half_bundle / "denoiser/model.onnx.data").read_bytes()).hexdigest() == before
    table = np.load(tmp_path / "half" / "embeddings.npy")
    assert table.shape == np.load(small_half_bundle / "embeddings.npy").shape
    assert json.loads((tmp_path / "half" / "bundle.json").read_text())["precision"] == "fp16"


def test_an_output_that_is_not_finite_never_passes(tmp_path: Path) -> None:
    expected = np.ones((2, 3), np.float32)
    Reference({"x": expected}, {"y": expected, "finite": np.ones(2, np.uint8)}).save(tmp_path / "part.npz")
    reference = Reference.load(tmp_path / "part.npz")
    assert reference.errors({"y": expected})["relative_error"] == 0
    assert reference.errors({"y": 2 * expected}) == {"relative_error": 1.0, "error_of_max": 1.0}
    spoilt = expected.copy()
    spoilt[0, 0] = np.nan
    assert reference.errors({"y": spoilt})["relative_error"] == pytest.approx(float("inf"))
