"""Manifests with any field changed: a bundle is refused as damaged, or a step can be drawn with it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest

from benchmarks.faults.mutations import mutated_manifest
from sd2rt.engines.bundle.manifest import MANIFEST, read_manifest
from sd2rt.engines.errors import BundleError
from sd2rt.runtime.pipeline.pipeline import Pipeline
from sd2rt.runtime.request.request import make_request

BUNDLES = ("small_bundle", "small_inpainting_bundle", "small_upscaler_bundle", "small_depth_bundle")


def copy_of(bundle: Path, target: Path) -> Path:
    """Copy a bundle with links to its files, of which only the manifest is replaced."""
    copy = Path(shutil.copytree(bundle, target, copy_function=os.link))
    content = (copy / MANIFEST).read_bytes()
    (copy / MANIFEST).unlink()
    (copy / MANIFEST).write_bytes(content)
    return copy


def draw_one_step(bundle: Path) -> None:
    """Draw one step of a task that the bundle says it supports, with all other settings its defaults."""
    with Pipeline.open(bundle, threads=1) as pipe:
        image, black = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
        tasks = pipe.manifest.tasks
        inputs = (
            {}
            if "text-to-image" in tasks
            else {"image": image, "mask_image": black}
            if "inpainting" in tasks
            else {"image": image}
        )
        request = make_request(prompt="a", width=64, height=64, seed=1, **inputs)
        if "upscaling" in tasks:
            request = make_request(prompt="a", seed=1, image=image[:16, :16])
        with pipe.stream_requests([request]) as run:
            next(iter(run))


@pytest.mark.parametrize("name", BUNDLES)
def test_any_field(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    bundle = copy_of(request.getfixturevalue(name), tmp_path / "bundle")
    content = json.loads((bundle / MANIFEST).read_text())
    draw_one_step(bundle)
    refused = drawn = 0
    for seed in range(60):
        changed, changes = mutated_manifest(content, Random(seed))
        (bundle / MANIFEST).write_text(json.dumps(changed))
        try:
            read_manifest(bundle)
            if drawn < 4:
                draw_one_step(bundle)
                drawn += 1
        except BundleError:
            refused += 1
        except BaseException as error:
            error.add_note(f"seed {seed}: {changes}")
            raise
    assert refused > 20
    assert drawn
