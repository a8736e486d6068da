"""What the process that compiles an engine is told, and what it answers: JSON both ways."""

from __future__ import annotations

from sd2rt.engines.bundle.engine_entry import BuilderOptions, Profile
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.schema import Model, Part


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
    built: Built | None = None
    error: str | None = None
    exit_code: int = 0
