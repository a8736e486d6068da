"""The networks of an open bundle: where the map of previews comes from."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from sd2rt.engines.bundle.manifest import MANIFEST
from sd2rt.runtime import Pipeline
from sd2rt.runtime.networks.vae import Vae

BUNDLES = ("small_bundle", "small_half_bundle", "small_upscaler_bundle")


@pytest.mark.parametrize("name", BUNDLES)
def test_older_bundles_get_the_map_at_first_use(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the one that a build records, fitted to PyTorch's decoder, up to the precision of the part."""
    bundle = request.getfixturevalue(name)
    older = Path(shutil.copytree(bundle, tmp_path / "older", copy_function=os.link))
    data = json.loads((bundle / MANIFEST).read_text())
    recorded = data.pop("preview")
    del data["checksum"]
    (older / MANIFEST).unlink()
    (older / MANIFEST).write_text(json.dumps(data))
    with Pipeline.open(older, threads=1) as pipe:
        fitted = pipe.preview
        half = pipe.manifest.parts["decoder"].precision == "fp16"
    bound = 2e-3 if half else 1.01e-4
    np.testing.assert_allclose(fitted.matrix, recorded["matrix"], atol=bound)
    assert fitted.error == pytest.approx(recorded["error"], abs=bound)

    def refuse(*arguments: object) -> None:
        raise AssertionError("a decode")

    monkeypatch.setattr(Vae, "decode", refuse)
    with Pipeline.open(bundle, threads=1) as pipe:
        np.testing.assert_array_equal(pipe.preview.matrix, np.array(recorded["matrix"], np.float32))
        assert pipe.preview.error == recorded["error"]
