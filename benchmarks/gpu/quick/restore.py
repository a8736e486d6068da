"""The stage that turns the kit's graphs into a whole bundle."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.gpu.quick.settings import QuickSettings
from benchmarks.gpu.quick.weights import BUNDLE, copy_graphs, write_weights
from benchmarks.gpu.stage import Record


def restore(settings: QuickSettings) -> Iterator[Record]:
    """Draw the weights into a copy of the graphs; an error where the first MB of a file differs from the kit's."""
    began = time.perf_counter()
    copy_graphs(settings.content / BUNDLE, settings.bundle)
    hashes = write_weights(settings.bundle, settings.facts["moments"])
    for path, expected in settings.facts["first_mb_sha256"].items():
        if hashes[path] != expected:
            raise RuntimeError(
                f"{path}: first MB has sha256 {hashes[path][:12]}, the kit says {expected[:12]}"
            )
        yield {
            "file": path,
            "bytes": (settings.bundle / path).stat().st_size,
            "first_mb_sha256": expected[:12],
            "equal": True,
        }
    yield {"weights": "drawn", "seconds": round(time.perf_counter() - began, 1)}
