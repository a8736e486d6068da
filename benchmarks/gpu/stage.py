"""The stages of the GPU check: what each does, what it needs, and whom it is done for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from benchmarks.gpu.settings import Settings

Record = dict[str, Any]
"""One result: a row of a stage's table."""
Work = Callable[[Settings, str], Iterator[Record]]
"""Yields each result as soon as it is there: what a stopped stage has yielded is kept."""


class CannotRunError(Exception):
    """A stage cannot be done here; the message is the one line that says why."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One kind of stage."""

    name: str
    what: str
    module: str
    """Under ``benchmarks.gpu``."""
    function: str
    arguments: tuple[str, ...] = ()
    per: Literal["machine", "variant", "first"] = "variant"
    """Done once, for each variant, or for the first variant alone."""
    packages: tuple[str, ...] = ()
    """What must be importable."""
    cpu: bool = False
    """A dry run does it, on the CPU."""
    anywhere: bool = False
    """It never uses a GPU: what it makes can be made before there is one."""

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
    what: str, module: str, function: str, backends: Sequence[str], prefix: str, **more: Any
) -> list[Stage]:
    packages, cpu = more.pop("packages", ()), more.pop("cpu", ())
    return [
        Stage(
            f"{prefix}-{backend}",
            what,
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
        "the GPU as it is, and what its matrix units and its memory do",
        "facts",
        "facts",
        per="machine",
        cpu=True,
    ),
    Stage(
        "philox",
        "runtime/rng/torch_cuda.py's numbers against torch.randn on the GPU",
        "philox",
        "compare",
        per="machine",
        packages=("torch",),
    ),
    Stage(
        "checkpoint",
        "random weights in full size",
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
        "sd2rt build --engines-only: fully fixed for one guided image, and buckets",
        "bundles",
        "engines",
        COMPILED,
        "engines",
        cpu=("tensorrt-rtx",),
    ),
    *_each(
        "every part, and whole images, against PyTorch",
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
        "the fully fixed engine against the bucketed one",
        "static_dynamic",
        "compare",
        COMPILED,
        "static-dynamic",
    ),
    Stage(
        "torch-eager",
        "diffusers' UNet as it is and in channels_last, beside sd2rt's engines; its whole images",
        "torch_peers",
        "eager",
        packages=_EXPORT,
        cpu=True,
    ),
    Stage(
        "torch-compile",
        "the same under torch.compile, max-autotune with CUDA graphs",
        "torch_peers",
        "compiled",
        packages=_EXPORT,
        cpu=True,
    ),
    *_each(
        "what loading and unloading a LoRA takes; A, B, A bit for bit",
        "loras",
        "measure",
        _ALL,
        "loras",
        per="first",
        cpu=("onnxruntime",),
    ),
    Stage(
        "refit-individual",
        "an engine that a LoRA is refitted into: build, size, it/s, refit",
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
        "the line and exit code of too little memory, another GPU's engine, a size without one",
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
        "every part, and whole images, of ONNX Runtime in fp32",
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
    """A stage for one variant, or for none."""

    stage: Stage
    variant: str = ""

    @property
    def name(self) -> str:
        return f"{self.stage.name}@{self.variant}" if self.variant else self.stage.name


def jobs(settings: Settings, chosen: Sequence[str]) -> list[Job]:
    """What is to be done, in the order of the table; all of it where nothing is chosen.

    Args:
        chosen: names of stages, each alone or with ``@`` and a variant.

    Raises:
        ValueError: there is no such stage.
    """
    variants = [name for name, _ in settings.sizes]
    made = []
    for stage in STAGES:
        owners = {"machine": [""], "first": variants[:1], "variant": variants}[stage.per]
        made += [Job(stage, owner) for owner in owners]
    known = {job.stage.name for job in made} | {job.name for job in made}
    for name in chosen:
        if name not in known:
            raise ValueError(f"there is no stage {name}: see --list")
    return [job for job in made if not chosen or job.name in chosen or job.stage.name in chosen]


def sides_of(settings: Settings, variant: str, native: int) -> tuple[int, ...]:
    """The sides of the images that a variant is tried with, in pixels."""
    return dict(settings.sizes)[variant] or (native,)
