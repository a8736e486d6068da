"""JSON messages exchanged with the child process that compiles an engine."""

from __future__ import annotations

from sd2rt.engines.bundle.engine_entry import BuilderOptions, Profile
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.schema import Model, Part


class BuildTask(Model):
    """One engine to compile."""

    name: PartName
    part: Part
    onnx: str
    """Path of the ONNX graph."""
    profiles: tuple[Profile, ...]
    options: BuilderOptions
    target: str
    """Path to write the engine to; the layer report is written beside it with ``.json`` appended."""
    timing_cache: str | None = None
    """Path of the kernel timings of earlier builds; only for TensorRT."""
    replaced: str | None = None
    """Path of an ``.npz`` with initialisers that replace the graph's."""


class Built(Model):
    """Facts about a compiled engine."""

    version: str
    compute_capabilities: tuple[str, ...]
    hardware_compatible: bool
    version_compatible: bool
    gpu: str | None
    driver: str | None
    flags: tuple[str, ...]
    attentions: int
    """Number of attention operators in the graph."""
    fused: int
    """Number of dedicated attention kernels in the engine."""
    layers: int
    seconds: float
    peak_bytes: int
    """Peak memory of the compiling process."""


class Answer(Model):
    """A line from the compiling process: its progress, its result or its error."""

    fraction: float | None = None
    built: Built | None = None
    error: str | None = None
    exit_code: int = 0
