"""TensorRT for RTX: the full-size denoiser compiled on this machine, launched plain and as a CUDA graph."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from benchmarks.gpu.quick.settings import QuickSettings
from benchmarks.gpu.stage import CannotRunError, Record
from benchmarks.gpu.timing import spread

_BACKEND = "tensorrt-rtx"


def build(settings: QuickSettings) -> Iterator[Record]:
    """`sd2rt build --engines-only --portable`: the targets of the tiny engine, which answered before."""
    from benchmarks.gpu.bundles import build_engines

    asked = ["--batch", "1", "--rows", "guided", "--portable", "--part", "denoiser"]
    yield from build_engines(
        settings.long(), settings.bundle, _BACKEND, settings.side, "portable", asked, set()
    )
    for path in sorted((settings.bundle / "denoiser").glob("*.engine")):
        with path.open("rb") as stream:
            (mask,) = struct.unpack_from("<I", stream.read(64), 0x20)
        yield {"mask": hex(mask), "engine": path.name}


def launch(settings: QuickSettings, mode: str) -> Iterator[Record]:
    """Error against the carried fp32 outputs, then milliseconds of a launch by the wall and by the device's clock."""
    if settings.device == "cpu":
        raise CannotRunError("running an engine needs an NVIDIA GPU, and this is a dry run")
    from benchmarks.gpu.launching import Launched
    from benchmarks.gpu.quick.reference import Reference
    from sd2rt.engines.bundle.reader import open_bundle

    bundle = open_bundle(settings.bundle)
    entries = [entry for entry in bundle.manifest.engines if entry.part == "denoiser"]
    if not entries:
        raise CannotRunError("no engine of the denoiser: run the stage rtx-build first")
    reference = Reference.load(settings.content / "denoiser.npz")
    with Launched(bundle, entries[0], settings.side, 1, graph=mode == "captured") as launched:
        yield {"mode": mode, **reference.errors(launched.outputs(reference.inputs))}
        yield {
            "mode": mode,
            "wall_ms": spread(launched.wall_ms() for _ in range(settings.rounds)),
            "device_ms": spread(launched.device_ms() for _ in range(settings.rounds)),
        }
