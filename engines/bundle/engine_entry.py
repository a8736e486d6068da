"""A manifest's entries of compiled engines: what they were built from and how, and the sizes that they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.schema import File, Model, Precision, Sha256

EngineBackend = Literal["tensorrt", "tensorrt-rtx"]
BackendName = Literal["auto", "onnxruntime", "openvino", EngineBackend]
"""Backends by name; ``auto`` chooses one."""
Refit = Literal["no", "all", "individual", "identical"]

_Size = Annotated[int, Field(ge=1)]


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


class Profile(Model):
    """The sizes that an engine takes: for each symbol of its part's shapes the least, the one it is tuned for and
    the most. A symbol whose three are one number is fixed."""

    name: str
    dims: dict[str, tuple[_Size, _Size, _Size]]

    @model_validator(mode="after")
    def _ordered(self) -> Profile:
        for symbol, (least, tuned, most) in self.dims.items():
            if not least <= tuned <= most:
                raise ValueError(f"profile {self.name}: {symbol} goes from {least} over {tuned} to {most}")
        return self

    @property
    def width(self) -> int:
        """How much it leaves open: 0 where everything is fixed."""
        return sum(most - least for least, _, most in self.dims.values())

    def takes(self, dims: Mapping[str, int]) -> bool:
        """Whether all of these sizes are within the profile."""
        return all(least <= dims.get(symbol, least) <= most for symbol, (least, _, most) in self.dims.items())


class EngineEntry(Model):
    """A part compiled by TensorRT or TensorRT for RTX, for some GPUs and sizes."""

    part: PartName
    key: Sha256
    """Stands for all that it was built from and how: a build with the same key would make it again."""
    backend: EngineBackend
    version: Annotated[str, Field(pattern=r"^\d+(\.\d+)+$")]
    """Of the backend, in full: an engine of another one is not opened, unless it is version-compatible."""
    compute_capabilities: Annotated[
        tuple[Annotated[str, Field(pattern=r"^\d+\.\d$")], ...], Field(min_length=1)
    ]
    """Of the GPUs that it was compiled for."""
    gpu: str | None
    """Where it was built: the GPU's name and its driver's version, None where there was none."""
    driver: str | None
    platform: str
    """Operating system and processor, such as ``linux-x86_64``."""
    precision: Precision
    version_compatible: bool
    """It runs in the lean runtime of its version too."""
    hardware_compatible: bool
    """It runs on later GPUs too."""
    options: BuilderOptions
    """What its builder was told, and what it set of it, by name."""
    flags: tuple[str, ...]
    label: str
    """The sizes that it takes, in short."""
    profiles: Annotated[tuple[Profile, ...], Field(min_length=1)]
    file: File
    report: File
    """What it is made of, layer by layer."""
    onnx: Sha256
    """Of the graph that it was built from."""
    weights: Sha256
    """Stands for the weights in it: the ONNX weights' own hash, or with it what was merged into them."""
