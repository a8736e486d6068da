"""The product's own path on ONNX Runtime: `sd2rt run`, parity of parts, steps a second, and a memory error."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

from benchmarks.gpu.quick.facts import carried_onnxruntime
from benchmarks.gpu.quick.settings import QuickSettings
from benchmarks.gpu.stage import CannotRunError, Record
from benchmarks.gpu.timing import spread

BATCHES = (1, 4)
_PROMPT = "a lighthouse on a cliff"
_FREE_BYTES = 3 << 29
"""Less than a full-size image takes."""


def first_image(settings: QuickSettings) -> Iterator[Record]:
    """`sd2rt run`, twice: the first process also hashes the bundle."""
    from benchmarks.recording import process

    target = Path(settings.workdir) / "images"
    for turn in ("first", "second"):
        words = [
            "run",
            str(settings.bundle),
            _PROMPT,
            "--device",
            settings.device,
            "--backend",
            "onnxruntime",
        ]
        words += ["--steps", str(settings.steps), "--seed", "1", "--output", str(target / f"{turn}.png")]
        measured = process.measure(process.sd2rt(*words), dict(os.environ))
        yield {
            "process": turn,
            "steps": settings.steps,
            "seconds": round(measured.seconds, 2),
            "host_peak_gb": measured.peak_rss_bytes / 1e9,
            "printed": " ".join(measured.stdout.split())[-200:] or None,
        }
    first, second = ((target / f"{turn}.png").read_bytes() for turn in ("first", "second"))
    yield {"png": "two processes", "equal": first == second, "bytes": len(first)}
    (Path(settings.output) / "image.png").write_bytes(first)


def parity(settings: QuickSettings) -> Iterator[Record]:
    """Each part by sd2rt's backend against the carried fp32 outputs."""
    from benchmarks.gpu.part_inputs import dims_of
    from benchmarks.gpu.quick.content import run_part
    from benchmarks.gpu.quick.reference import PARTS, Reference
    from sd2rt.engines.bundle.model_kinds import PartName
    from sd2rt.engines.bundle.reader import open_bundle

    carried_onnxruntime(settings)
    bundle = open_bundle(settings.bundle)
    for name in PARTS:
        part = cast(PartName, name)
        reference = Reference.load(settings.content / f"{name}.npz")
        dims = dims_of(bundle.manifest, part, settings.side)
        outputs = run_part(bundle, part, dims, reference.inputs, settings.device)
        yield {"part": name, "precision": bundle.manifest.parts[part].precision, **reference.errors(outputs)}


def speed(settings: QuickSettings) -> Iterator[Record]:
    """Guided steps a second of the whole loop at batch 1 and 4, without a CUDA graph and with one."""
    from benchmarks.gpu.device import used_bytes
    from benchmarks.gpu.speed import step_seconds
    from sd2rt.engines.errors import Sd2rtError
    from sd2rt.runtime import Pipeline

    carried_onnxruntime(settings)
    for graph in (False, True) if settings.device == "cuda" else (False,):
        label = {"loop": "graph" if graph else "no graph"}
        try:
            with Pipeline.open(
                settings.bundle, device=settings.device, backend="onnxruntime", cuda_graph=graph
            ) as pipeline:
                for batch in BATCHES:
                    measure = partial(step_seconds, pipeline, settings.side, batch, settings.steps)
                    measure()
                    seconds = [measure() for _ in range(settings.rounds)]
                    used = used_bytes() if settings.device == "cuda" else None
                    yield {
                        **label,
                        "batch": batch,
                        "it_s": spread((batch / s for s in seconds), 3),
                        "step_ms": statistics.median(seconds) * 1e3,
                        "device_gb": None if used is None else used / 1e9,
                    }
        except Sd2rtError as error:
            yield {**label, "refused": str(error)}


def out_of_memory(settings: QuickSettings) -> Iterator[Record]:
    """The line and exit code of `sd2rt` where 1.6 GB of device memory are free."""
    if settings.device == "cpu":
        raise CannotRunError("filling device memory needs an NVIDIA GPU, and this is a dry run")
    from benchmarks.gpu.error_lines import little_memory, provoked

    with little_memory(_FREE_BYTES) as free:
        trouble = f"{free / 1e9:.2f} GB of device memory are free"
        yield provoked(settings.long(), trouble, settings.bundle, "onnxruntime", settings.side, expected=5)
