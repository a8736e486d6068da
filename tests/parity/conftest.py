"""Bundles beside the PyTorch they were made from, and the table of errors that a run of this suite leaves."""

from __future__ import annotations

import importlib.metadata
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sd2rt.export.build import build
from sd2rt.export.checkpoint import Checkpoint, open_checkpoint
from sd2rt.export.reference import reference_pipeline
from sd2rt.runtime import Pipeline

TABLE_VARIABLE = "SD2RT_PARITY_TABLE"
"""Where to write the table, if anywhere: `make parity` sets it to docs/parity.md."""


@dataclass
class Pair:
    """A bundle, and the checkpoint it was made from in diffusers."""

    checkpoint: Checkpoint
    pipeline: Pipeline
    reference: Any


@dataclass
class Table:
    """Errors measured, by section."""

    sections: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)

    def add(self, section: str, what: str, error: str, bound: str) -> None:
        self.sections.setdefault(section, []).append((what, error, bound))

    def write(self, path: Path) -> None:
        names = ("torch", "diffusers", "transformers", "onnx", "onnxruntime")
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
        lines = [
            "# Parity with PyTorch",
            "",
            "Written by `make parity` from a run of `tests/parity`: do not edit. Small seeded checkpoints of SD2's",
            "architecture, in real formats; the reference is diffusers in float32 on the CPU; images are compared",
            f"before they are rounded to 8 bits. {versions}.",
        ]
        for section, rows in sorted(self.sections.items()):
            lines += ["", f"## {section}", "", "| what | measured | bound |", "| --- | --- | --- |"]
            lines += [f"| {what} | {error} | {bound} |" for what, error, bound in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def table() -> Iterator[Table]:
    made = Table()
    yield made
    if target := os.environ.get(TABLE_VARIABLE):
        made.write(Path(target))


@pytest.fixture(scope="session")
def record(table: Table) -> Callable[[str, str, float, float], None]:
    """Notes an image's worst pixel (of 255) and PSNR, and asserts the bounds for float32."""

    def note(section: str, what: str, worst: float, psnr: float) -> None:
        shown = "equal" if math.isinf(psnr) else f"{worst:.2g}/255, {psnr:.0f} dB"
        table.add(section, what, shown, "2/255, 55 dB")
        assert worst <= 2, f"{what}: a pixel is {worst}/255 off"
        assert psnr >= 55, f"{what}: {psnr} dB"

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
def half(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The base bundle in fp16, beside PyTorch in fp32."""
    bundle = tmp_path_factory.mktemp("bundles") / "half"
    build(open_checkpoint(str(small_checkpoint)), bundle, precision="fp16")
    yield from _pair(small_checkpoint, bundle)
