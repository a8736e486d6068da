"""Fixtures: bundles with their diffusers references, and a record of measured errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sd2rt.export.checkpoints.checkpoint import Checkpoint, open_checkpoint
from sd2rt.export.reference import reference_pipeline
from sd2rt.runtime import Pipeline

from .table import Rows


@dataclass
class Pair:
    """An opened bundle, its checkpoint, and the checkpoint's pipeline in diffusers."""

    checkpoint: Checkpoint
    pipeline: Pipeline
    reference: Any


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Rows:
    return Rows(request.node)


@pytest.fixture
def record(table: Rows) -> Callable[[str, str, float, float], None]:
    """Record an image's worst pixel error (of 255) and PSNR, and assert the bounds for float32."""

    def note(section: str, label: str, worst: float, psnr: float) -> None:
        measured = "identical" if math.isinf(psnr) else f"{worst:.2g}/255, {psnr:.0f} dB"
        table.add(section, label, measured, "2/255, 55 dB")
        assert worst <= 2, f"{label}: a pixel is {worst}/255 off"
        assert psnr >= 55, f"{label}: {psnr} dB"

    return note


def _pair(checkpoint: Path, bundle: Path) -> Iterator[Pair]:
    opened = open_checkpoint(str(checkpoint))
    with Pipeline.open(bundle) as pipeline:
        yield Pair(opened, pipeline, reference_pipeline(opened))


@pytest.fixture(scope="session")
def base(small_checkpoint: Path, small_bundle: Path) -> Iterator[Pair]:
    yield from _pair(small_checkpoint, small_bundle)


@pytest.fixture(scope="session")
def v(small_v_checkpoint: Path, small_v_bundle: Path) -> Iterator[Pair]:
    yield from _pair(small_v_checkpoint, small_v_bundle)


@pytest.fixture(scope="session")
def turbo(small_turbo_checkpoint: Path, small_turbo_bundle: Path) -> Iterator[Pair]:
    yield from _pair(small_turbo_checkpoint, small_turbo_bundle)


@pytest.fixture(scope="session")
def inpainting(small_inpainting_checkpoint: Path, small_inpainting_bundle: Path) -> Iterator[Pair]:
    yield from _pair(small_inpainting_checkpoint, small_inpainting_bundle)


@pytest.fixture(scope="session")
def depth(small_depth_checkpoint: Path, small_depth_bundle: Path) -> Iterator[Pair]:
    yield from _pair(small_depth_checkpoint, small_depth_bundle)


@pytest.fixture(scope="session")
def upscaler(small_upscaler_checkpoint: Path, small_upscaler_bundle: Path) -> Iterator[Pair]:
    yield from _pair(small_upscaler_checkpoint, small_upscaler_bundle)


@pytest.fixture(scope="session")
def half(small_checkpoint: Path, small_half_bundle: Path) -> Iterator[Pair]:
    """The base bundle in fp16, beside PyTorch in fp32."""
    yield from _pair(small_checkpoint, small_half_bundle)
