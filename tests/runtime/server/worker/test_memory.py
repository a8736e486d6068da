"""Memory that bundles need, and the refusal of those that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.errors import OutOfMemoryError
from sd2rt.engines.interface import Device
from sd2rt.runtime.server.worker.bundles import ServedBundles
from sd2rt.runtime.server.worker.memory import available_bytes, in_units, needed_bytes, used_bytes
from sd2rt.runtime.server.worker_settings import WorkerSettings


def test_a_bundle_needs_its_weights_once(small_bundle: Path) -> None:
    manifest = read_manifest(small_bundle)
    parts = ("text_encoder", "denoiser", "decoder", "encoder")
    weights = sum(file.size for part in parts for file in manifest.parts[part].files)  # type: ignore[index, misc]
    assert weights <= needed_bytes(manifest) < 3 * weights + 10**8


def test_the_machine_has_memory() -> None:
    assert (available_bytes(Device("cpu")) or 0) > 10**8
    assert (used_bytes(Device("cpu")) or 0) > 10**7


@pytest.mark.parametrize(("size", "text"), [(1_500_000_000, "1.5 GB"), (43_258_427, "43 MB")])
def test_units(size: int, text: str) -> None:
    assert in_units(size) == text


def test_bundles_that_do_not_fit_are_refused(small_bundle: Path, small_v_bundle: Path) -> None:
    bundles = {"small": str(small_bundle), "other": str(small_v_bundle)}
    needed = [needed_bytes(read_manifest(path)) for path in (small_bundle, small_v_bundle)]

    def open_with(memory: int, keep: int | None = None) -> ServedBundles:
        return ServedBundles(WorkerSettings(bundles=bundles, memory_bytes=memory, keep=keep), Device("cpu"))

    assert open_with(sum(needed)).needed == dict(zip(bundles, needed, strict=True))
    with pytest.raises(OutOfMemoryError, match=r"small \d+ MB, other \d+ MB.*--keep"):
        open_with(sum(needed) - 1)
    assert open_with(max(needed), keep=1).keep == 1
    with pytest.raises(OutOfMemoryError):
        open_with(max(needed) - 1, keep=1)
