"""What the process that compiles an engine is told, and what it answers: JSON both ways."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sd2rt.engines.kinds import PartName
from sd2rt.engines.manifest import EngineBackend, Model, Part, Profile

Refit = Literal["no", "all", "individual", "identical"]


class BuilderOptions(Model):
    """How a backend is to build, whatever the part."""

    backend: EngineBackend
    compute_capabilities: tuple[str, ...] = ()
    """Of the GPUs to build for, such as ``8.9``; empty for the GPU at hand, or where ``portable`` for all that the
    backend builds for unasked."""
    portable: bool = False
    """For later GPUs too, and with TensorRT for later versions of it too."""
    allow_decomposed: bool = False
    """Attention may be built of kernels that were not made for it."""
    refit: Refit = "no"
    """Which weights can be replaced in the finished engine: none, all, those that a LoRA changes, or all by the
    same ones, of which the engine then holds none."""
    workspace_bytes: int | None = Field(default=None, ge=1)
    """The most memory that a kernel may ask for while it runs; None for the backend's own limit."""
    optimization_level: int | None = Field(default=None, ge=0, le=5)
    """How long kernels are searched for; None for the backend's own choice."""


class BuildTask(Model):
    """One engine to compile."""

    name: PartName
    part: Part
    onnx: str
    """Where the graph lies."""
    profiles: tuple[Profile, ...]
    options: BuilderOptions
    target: str
    """Where the engine is to be written, and beside it with ``.json`` what it is made of."""
    timing_cache: str | None = None
    """What earlier builds measured of kernels; TensorRT alone has one."""
    replaced: str | None = None
    """An ``.npz`` of initialisers to build in the place of the graph's own."""


class Built(Model):
    """An engine that has been compiled."""

    version: str
    compute_capabilities: tuple[str, ...]
    hardware_compatible: bool
    version_compatible: bool
    gpu: str | None
    driver: str | None
    flags: tuple[str, ...]
    attentions: int
    """Attention operators of the graph, and kernels made for attention in the engine."""
    fused: int
    layers: int
    seconds: float
    peak_bytes: int
    """Of the compiling process's memory."""


class Answer(Model):
    """A line from the compiling process: how far it is, what it made, or why it failed."""

    fraction: float | None = None
    phase: str = ""
    built: Built | None = None
    error: str | None = None
    exit_code: int = 0
