"""Render the page on the roof: what GPUs could give by counts and published rates, beside published figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from string import Template

from benchmarks.cost_model.reference_counts import REFERENCES, Reference
from benchmarks.page import markdown
from benchmarks.page.latest import NotMeasuredError, Results

TEMPLATE = Path(__file__).resolve().parent.parent / "roof.md.in"
REACHED = 0.8
"""Share of the nominal rate that large products reach: 790 of 989 TFLOP/s on an H100."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """Dense rates from NVIDIA's data sheets and architecture papers: 1e12 operations, or bytes, a second."""

    name: str
    half: float
    """Products of float16 with sums in float32."""
    half_sums: float
    """Products of float16 with sums in float16, which GeForce cards make twice as fast."""
    fp8: float | None
    int8: float
    memory: float

    def seconds(self, work: Reference, rate: float, element_bytes: float = 2) -> float:
        """Least time of a call: that of its operations, or of its bytes."""
        moved = work.gigabytes * element_bytes / 2 / 1e3
        return max(work.tflop / rate, moved / self.memory)


GPUS = (
    Gpu("H100", 989.4, 989.4, 1978.9, 1978.9, 3.35),
    Gpu("H200", 989.4, 989.4, 1978.9, 1978.9, 4.8),
    Gpu("RTX 4090", 165.2, 330.3, 330.3, 660.6, 1.008),
    Gpu("RTX 5090", 209.5, 419.0, 419.0, 838.0, 1.792),
    Gpu("L4", 121.0, 121.0, 242.5, 242.5, 0.3),
    Gpu("A10", 125.0, 125.0, None, 250.0, 0.6),
)
_AMPERE = (Gpu("A100", 312.0, 312.0, None, 624.0, 2.039), Gpu("A800", 312.0, 312.0, None, 624.0, 2.039))
"""GPUs of published figures only."""
SIZES = (512, 768)
PUBLISHED = (
    ("H100", "SD 1.5", 512, 104.6),
    ("RTX 4090", "SD 2.1", 512, 94.2),
    ("RTX 4090", "SD 2.1", 768, 43.8),
    ("A800", "SD 2.1", 512, 77.4),
    ("A800", "SD 2.1", 768, 36.3),
)
"""The best published figures that were found, in it/s: guided, batch 1, fp16."""
_TURBO_MS = 24.0
"""Published for four rows of SD-Turbo at 512, by ONNX Runtime on an A100."""


def step_of(side: int, rows: int = 2) -> Reference:
    """The denoiser of 2.1 at a side in pixels: a guided image, or with one row an unguided one."""
    return next(
        row
        for row in REFERENCES
        if row.part == "denoiser" and (row.side * 8, row.rows) == (side, rows) and "base" in row.configs
    )


def page(results: Results, folder: Path) -> str:
    """Render docs/roof.md; its links are relative to ``folder``."""
    scheduling = results.newest("scheduling", lambda value: bool(value["complete"]))
    curve = {int(batch): float(seconds) for batch, seconds in scheduling.value["curve"].items()}
    return Template(TEMPLATE.read_text()).substitute(
        reached=f"{REACHED:.0%}",
        steps=markdown.table(
            (
                "GPU, size", "least ms, fp16", "predicted it/s, fp16", f"at {REACHED:.0%}", "sums in fp16",
                "ceiling, fp8", "ceiling, int8", "measured",
            ),
            list(_steps(results)),
        ),
        parts=markdown.table(
            ("call of 2.1, fp16", "TFLOP", "GB", *(gpu.name for gpu in GPUS)),
            [
                [label, work.tflop, work.gigabytes, *(_milliseconds(gpu, work) for gpu in GPUS)]
                for label, work in _parts()
            ],
        ),
        rates=markdown.table(
            ("GPU", "fp16", "fp16, sums in fp16", "fp8", "int8", "memory, TB/s"),
            [
                [gpu.name, gpu.half, gpu.half_sums, gpu.fp8 or "none", gpu.int8, gpu.memory]
                for gpu in (*GPUS, *_AMPERE)
            ],
        ),
        published=markdown.table(
            ("GPU", "what", "published it/s", "of the roof", "of that with sums in fp16"), list(_published())
        ),
        batching=markdown.table(
            ("images in a call", "ms a call", "images a second, over one alone"),
            [
                [batch, f"{seconds * 1e3:.0f}", f"{batch / seconds * curve[1]:.2f}"]
                for batch, seconds in curve.items()
            ],
        ),
        turbo_ms=f"{_TURBO_MS:g}",
        turbo_roof=f"{4 * step_of(512, 1).tflop / _AMPERE[0].half * 1e3:.1f}",
    )  # fmt: skip


def _steps(results: Results) -> Iterator[list[object]]:
    for gpu in GPUS:
        for side in SIZES:
            work = step_of(side)
            seconds = gpu.seconds(work, gpu.half)
            yield [
                f"{gpu.name}, {side}",
                f"{seconds * 1e3:.2f}",
                f"{1 / seconds:.0f}",
                f"{1 / gpu.seconds(work, gpu.half * REACHED):.0f}",
                "-" if gpu.half_sums == gpu.half else f"{1 / gpu.seconds(work, gpu.half_sums):.0f}",
                "-" if gpu.fp8 is None else f"{1 / gpu.seconds(work, gpu.fp8, 1):.0f}",
                f"{1 / gpu.seconds(work, gpu.int8, 1):.0f}",
                measured(results, gpu.name, side) or "not yet",
            ]


def _published() -> Iterator[list[object]]:
    gpus = {gpu.name: gpu for gpu in (*GPUS, *_AMPERE)}
    for name, model, side, rate in PUBLISHED:
        gpu, work = gpus[name], step_of(side)
        shares = [f"{rate * gpu.seconds(work, each):.0%}" for each in (gpu.half, gpu.half_sums)]
        yield [name, f"{model}, {side}", rate, *shares]


def measured(results: Results, gpu: str, side: int) -> str | None:
    """Return the newest it/s of ``sd2rt bench`` on a GPU with this name; None if there is none."""
    newest = results.each("bench", lambda value: value["machine"]["date"])
    found = []
    with suppress(NotMeasuredError):
        found = [
            (result.date, case["it_per_second"])
            for result in newest
            for case in result.value["cases"]
            if gpu in str(result.value["machine"].get("gpu"))
            and result.value["bundle"]["precision"] == "fp16"
            and result.value["settings"]["guidance_scale"] > 1
            and (case["width"], case["height"], case["batch"]) == (side, side, 1)
        ]
    return markdown.spread(max(found, key=lambda each: each[0])[1]) if found else None


def _parts() -> Iterator[tuple[str, Reference]]:
    for side in SIZES:
        yield f"denoiser, {side}, guided", step_of(side)
    yield "denoiser, 512, unguided", step_of(512, 1)
    for row in REFERENCES:
        if "base" in row.configs and row.part in ("decoder", "encoder"):
            yield f"{row.part}, {row.side * 8}", row


def _milliseconds(gpu: Gpu, work: Reference) -> str:
    return f"{gpu.seconds(work, gpu.half) * 1e3:.2f} ms"
