"""The stages of the quick check, in the order in which a short lease is best spent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module

from benchmarks.gpu.quick.ort_options import CELLS, stage_name
from benchmarks.gpu.quick.settings import QuickSettings
from benchmarks.gpu.stage import Record


@dataclass(frozen=True, slots=True)
class QuickStage:
    """One process of the check."""

    name: str
    question: str
    module: str
    """Under ``benchmarks.gpu.quick``."""
    function: str
    arguments: tuple[str, ...] = ()
    limit_s: float = 60.0
    """Seconds after which it is stopped."""
    least_s: float = 15.0
    """It is skipped where less of the budget is left."""
    after: str | None = None
    """A stage that must be done before."""
    archive: str | None = None
    """The kit's archive that it needs on a GPU."""

    def work(self, settings: QuickSettings) -> Iterator[Record]:
        """Yield the stage's records as they are measured."""
        function = getattr(import_module(f"benchmarks.gpu.quick.{self.module}"), self.function)
        yield from function(settings, *self.arguments)


_PRODUCT_S = 110.0
"""Seconds that the product's stages need: further options of ONNX Runtime leave them to these."""
_TORCH_LEAST_S = 120.0

STAGES: tuple[QuickStage, ...] = (
    QuickStage("facts", "GPU, packages and their files, rates of a product and a copy", "facts", "facts"),
    QuickStage(
        "weights", "are drawn weights equal on both machines", "restore", "restore", limit_s=120, archive="content"
    ),
    *(
        QuickStage(
            stage_name(options, form),
            f"denoiser under ONNX Runtime, {options}, {form}: placement, error, ms, with and without a CUDA graph",
            "ort_session",
            "compare",
            (options, form),
            limit_s=75,
            least_s=15 if (options, form) == CELLS[0] else _PRODUCT_S + 20,
            after="weights",
            archive="ort",
        )
        for options, form in CELLS
    ),
    QuickStage(
        "ort-profile", "operators, copies and kernels", "ort_profile", "profile", limit_s=90, least_s=_PRODUCT_S,
        after="weights", archive="ort",
    ),
    QuickStage(
        "product-image", "sd2rt run: the first image of a process", "product", "first_image", limit_s=120,
        after="weights", archive="ort",
    ),
    QuickStage(
        "product-parity", "each part against fp32", "product", "parity", limit_s=90, after="weights", archive="ort"
    ),
    QuickStage(
        "product-speed", "steps a second at batch 1 and 4", "product", "speed", limit_s=120, after="weights",
        archive="ort",
    ),
    QuickStage(
        "product-memory", "line and exit code when memory is short", "product", "out_of_memory", after="weights",
        archive="ort",
    ),
    QuickStage("rtx-tiny", "does TensorRT for RTX run here", "tiny_engine", "ask", limit_s=30, archive="rtx"),
    QuickStage(
        "rtx-build", "the denoiser's engine", "rtx", "build", limit_s=180, least_s=40, after="rtx-tiny",
        archive="rtx",
    ),
    QuickStage("rtx-plain", "its launch", "rtx", "launch", ("plain",), after="rtx-build", archive="rtx"),
    QuickStage("rtx-captured", "as a graph", "rtx", "launch", ("captured",), after="rtx-build", archive="rtx"),
    *(
        QuickStage(
            f"torch-{mode}", f"diffusers' UNet under PyTorch, {mode}", "torch_steps", "measure", (mode,),
            limit_s=limit, least_s=_TORCH_LEAST_S,
        )
        for mode, limit in (("eager", 60), ("channels_last", 60), ("compiled", 240))
    ),
)  # fmt: skip


def choose(names: Sequence[str]) -> list[QuickStage]:
    """Stages by name, or by the first word of several names; all where none is given.

    Raises:
        ValueError: unknown stage.
    """
    for name in names:
        if not any(_matches(stage, name) for stage in STAGES):
            raise ValueError(
                f"there is no stage {name}: choose from {', '.join(stage.name for stage in STAGES)}"
            )
    return [stage for stage in STAGES if not names or any(_matches(stage, name) for name in names)]


def _matches(stage: QuickStage, name: str) -> bool:
    return stage.name == name or stage.name.split("-")[0] == name
