"""Table of the GPU check's stages: purpose, requirements, and the variants they run for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from benchmarks.gpu.settings import Settings

Record = dict[str, Any]
"""One result: a row of a stage's table in the report."""
Work = Callable[[Settings, str], Iterator[Record]]
"""Yields each result as soon as it is measured; those of a stopped stage are kept."""


class CannotRunError(Exception):
    """A stage cannot run here; the message is one line with the reason."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One kind of stage."""

    name: str
    purpose: str
    module: str
    """Module under ``benchmarks.gpu``."""
    function: str
    arguments: tuple[str, ...] = ()
    per: Literal["machine", "variant", "first"] = "variant"
    """Run once, for every variant, or only for the first variant."""
    packages: tuple[str, ...] = ()
    """Packages that must be importable."""
    cpu: bool = False
    """A dry run includes it, on the CPU."""
    anywhere: bool = False
    """It never uses a GPU, so it can run before one is at hand."""

    def work(self, settings: Settings, variant: str) -> Iterator[Record]:
        function = getattr(import_module(f"benchmarks.gpu.{self.module}"), self.function)
        yield from function(settings, variant, *self.arguments)

    @property
    def needs(self) -> str:
        gpu = [] if self.anywhere else ["a GPU or a dry run" if self.cpu else "a GPU"]
        return ", ".join([*self.packages, *gpu])


_EXPORT = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "safetensors")
_MODULES = {
    "tensorrt": ("tensorrt", "cuda.core"),
    "tensorrt-rtx": ("tensorrt_rtx", "cuda.core"),
    "onnxruntime": ("onnxruntime",),
}
COMPILED = ("tensorrt", "tensorrt-rtx")


def _each(
    purpose: str, module: str, function: str, backends: Sequence[str], prefix: str, **more: Any
) -> list[Stage]:
    packages, cpu = more.pop("packages", ()), more.pop("cpu", ())
    return [
        Stage(
            f"{prefix}-{backend}",
            purpose,
            module,
            function,
            (backend,),
            packages=(*_MODULES[backend], *packages),
            cpu=backend in cpu,
            **more,
        )
        for backend in backends
    ]


_ALL = ("tensorrt", "tensorrt-rtx", "onnxruntime")
STAGES: tuple[Stage, ...] = (
    Stage(
        "facts",
        "GPU state; rates of a matrix product and a copy",
        "facts",
        "facts",
        per="machine",
        cpu=True,
    ),
    Stage(
        "philox",
        "random numbers of runtime/rng/torch_cuda.py against torch.randn on the GPU",
        "philox",
        "compare",
        per="machine",
        packages=("torch",),
    ),
    Stage(
        "checkpoint",
        "write full-size random weights",
        "bundles",
        "checkpoint",
        packages=_EXPORT,
        cpu=True,
        anywhere=True,
    ),
    Stage(
        "bundle",
        "sd2rt build, fp16",
        "bundles",
        "bundle",
        ("fp16",),
        packages=_EXPORT,
        cpu=True,
        anywhere=True,
    ),
    *_each(
        "sd2rt build --engines-only: fixed shapes for one guided image, and buckets",
        "bundles",
        "engines",
        COMPILED,
        "engines",
        cpu=("tensorrt-rtx",),
    ),
    *_each(
        "every part and whole images against PyTorch",
        "parity",
        "compare",
        _ALL,
        "parity",
        packages=_EXPORT,
        cpu=("onnxruntime",),
    ),
    *_each(
        "it/s, device time, host gap, seconds of an image, memory, the first image",
        "speed",
        "measure",
        _ALL,
        "speed",
        cpu=("onnxruntime",),
    ),
    *_each(
        "engines with fixed shapes against bucketed ones",
        "static_dynamic",
        "compare",
        COMPILED,
        "static-dynamic",
    ),
    Stage(
        "torch-eager",
        "diffusers' UNet, eager and channels_last, against sd2rt's engines; whole images of diffusers",
        "torch_peers",
        "eager",
        packages=_EXPORT,
        cpu=True,
    ),
    Stage(
        "torch-compile",
        "the same UNet under torch.compile, max-autotune with CUDA graphs",
        "torch_peers",
        "compiled",
        packages=_EXPORT,
        cpu=True,
    ),
    *_each(
        "time to load and unload a LoRA; the image without it is bit-equal afterwards",
        "loras",
        "measure",
        _ALL,
        "loras",
        per="first",
        cpu=("onnxruntime",),
    ),
    Stage(
        "refit-individual",
        "engines with individually refittable weights: build, size, it/s, refit",
        "loras",
        "refit",
        ("individual",),
        per="first",
        packages=_MODULES["tensorrt"],
    ),
    Stage(
        "refit-all",
        "the same with all weights refittable",
        "loras",
        "refit",
        ("all",),
        per="first",
        packages=_MODULES["tensorrt"],
    ),
    *_each(
        "error line and exit code for short memory, another GPU's engine, a size without an engine",
        "error_lines",
        "provoke",
        _ALL,
        "errors",
        per="first",
    ),
    Stage(
        "bundle-fp32",
        "sd2rt build, fp32",
        "bundles",
        "bundle",
        ("fp32",),
        per="first",
        packages=_EXPORT,
        cpu=True,
        anywhere=True,
    ),
    Stage(
        "parity-fp32",
        "every part and whole images of ONNX Runtime in fp32",
        "parity",
        "compare",
        ("onnxruntime", "fp32"),
        per="first",
        packages=(*_MODULES["onnxruntime"], *_EXPORT),
        cpu=True,
    ),
)


@dataclass(frozen=True, slots=True)
class Job:
    """A stage for one variant, or for the machine."""

    stage: Stage
    variant: str = ""

    @property
    def name(self) -> str:
        return f"{self.stage.name}@{self.variant}" if self.variant else self.stage.name


def jobs(settings: Settings, chosen: Sequence[str]) -> list[Job]:
    """Jobs in the order of the table; all of them if ``chosen`` is empty.

    Args:
        chosen: stage names, each alone or as STAGE@VARIANT.

    Raises:
        ValueError: unknown stage.
    """
    variants = [name for name, _ in settings.sizes]
    all_jobs = []
    for stage in STAGES:
        owners = {"machine": [""], "first": variants[:1], "variant": variants}[stage.per]
        all_jobs += [Job(stage, owner) for owner in owners]
    names = {job.stage.name for job in all_jobs} | {job.name for job in all_jobs}
    for name in chosen:
        if name not in names:
            raise ValueError(f"there is no stage {name}: see --list")
    return [job for job in all_jobs if not chosen or job.name in chosen or job.stage.name in chosen]


def sides_of(settings: Settings, variant: str, native: int) -> tuple[int, ...]:
    """Sides in pixels of the images tested for a variant."""
    return dict(settings.sizes)[variant] or (native,)
