"""Compare OpenVINO with PyTorch: the same bounds as ONNX Runtime in float32, other bounds in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import openvino
import pytest

from sd2rt.runtime import Pipeline

from .test_images import NEGATIVE, PROMPT, difference, reference

needs_bf16 = pytest.mark.skipif(
    "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="this CPU has no bfloat16 instructions",
)


@pytest.fixture(scope="module")
def exact(request: pytest.FixtureRequest) -> Iterator[dict[str, Pipeline]]:
    yield from _opened(request, None)


@pytest.fixture(scope="module", params=[64, 192])
def side(request: pytest.FixtureRequest) -> int:
    """Side of the images: 64 uses an engine for any size, 192 one compiled for that size."""
    return int(request.param)


@pytest.fixture(scope="module")
def rounded(request: pytest.FixtureRequest, side: int) -> Iterator[dict[str, Pipeline]]:
    yield from _opened(request, "bf16")


def _opened(
    request: pytest.FixtureRequest, precision: Literal["bf16"] | None
) -> Iterator[dict[str, Pipeline]]:
    bundles = {name: request.getfixturevalue(name).pipeline.bundle.path for name in ("base", "v")}
    opened = {
        name: Pipeline.open(path, backend="openvino", precision=precision) for name, path in bundles.items()
    }
    try:
        yield opened
    finally:
        for pipeline in opened.values():
            pipeline.close()


@pytest.mark.parametrize(("variant", "sampler"), [("base", "euler"), ("v", "dpmpp-2m")])
def test_float32(request: Any, exact: Any, record: Any, variant: str, sampler: str) -> None:
    pair = request.getfixturevalue(variant)
    options: dict[str, Any] = {"num_inference_steps": 10, "negative_prompt": NEGATIVE}
    expected = reference(pair, sampler, seeds=[11], prompt=PROMPT, **options)
    ours = exact[variant](PROMPT, seed=11, sampler=sampler, output_type="np", **options).images
    record("OpenVINO", f"{variant}, {sampler}, 10 steps", *difference(ours, expected))


@needs_bf16
@pytest.mark.parametrize("steps", [4, 10, 25])
@pytest.mark.parametrize(("variant", "sampler"), [("base", "ddim"), ("base", "dpmpp-2m"), ("v", "euler")])
def test_bfloat16(
    request: Any, rounded: Any, table: Any, variant: str, sampler: str, steps: int, side: int
) -> None:
    pair = request.getfixturevalue(variant)
    options: dict[str, Any] = {"num_inference_steps": steps, "width": side, "height": side}
    expected = reference(pair, sampler, seeds=[1], prompt=PROMPT, **options)
    ours = rounded[variant](PROMPT, seed=1, sampler=sampler, output_type="np", **options).images
    _, psnr = difference(ours, expected)
    latents = reference(pair, sampler, seeds=[1], prompt=PROMPT, output_type="latent", **options)
    our_latents = rounded[variant](PROMPT, seed=1, sampler=sampler, output_type="latent", **options).images
    error = float(np.linalg.norm(our_latents - latents) / np.linalg.norm(latents))
    label = f"{variant}, {sampler}, {steps} steps, {side}x{side}, OpenVINO"
    table.add(
        "bf16 against PyTorch fp32", label, f"{psnr:.0f} dB, latents {error:.1e}", "28 dB, latents 6e-2"
    )
    assert psnr >= 28
    assert error <= 6e-2
