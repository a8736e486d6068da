"""Manifest entries of compiled engines: their inputs, build options and supported sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.schema import File, Model, Precision, Sha256

EngineBackend = Literal["tensorrt", "tensorrt-rtx"]
BackendName = Literal["auto", "onnxruntime", "openvino", EngineBackend]
"""Backend names; ``auto`` selects one."""
Refit = Literal["no", "all", "individual", "identical"]

_Size = Annotated[int, Field(ge=1)]


class BuilderOptions(Model):
    """Build options that apply to every part."""

    backend: EngineBackend
    compute_capabilities: tuple[str, ...] = ()
    """Compute capabilities of the GPUs to build for, such as ``8.9``. If empty: those of the local GPU, or the
    backend's default set if ``portable``."""
    portable: bool = False
    """Make the engine run on later GPUs too; with TensorRT, in later versions too."""
    allow_decomposed: bool = False
    """Accept attention that is not a fused kernel."""
    refit: Refit = "no"
    """Weights that can be replaced in the built engine: none (``no``), ``all``, those that a LoRA changes
    (``individual``), or all by the original values (``identical``), in which case the engine stores no weights."""
    workspace_bytes: int | None = Field(default=None, ge=1)
    """Upper limit of a kernel's scratch memory; None for the backend's default."""
    optimization_level: int | None = Field(default=None, ge=0, le=5)
    """Effort of the kernel search, 0 to 5; None for the backend's default."""


class Profile(Model):
    """Sizes that an engine supports: minimum, optimum and maximum of each symbol of its part's shapes.

    A symbol is fixed if the three are equal.
    """

    name: str
    dims: dict[str, tuple[_Size, _Size, _Size]]

    @model_validator(mode="after")
    def _ordered(self) -> Profile:
        for symbol, (minimum, optimum, maximum) in self.dims.items():
            if not minimum <= optimum <= maximum:
                raise ValueError(
                    f"profile {self.name}: {symbol} has minimum {minimum}, optimum {optimum}, maximum {maximum}, "
                    "which are not in order"
                )
        return self

    @property
    def width(self) -> int:
        """Sum of the symbols' ranges: 0 if all sizes are fixed."""
        return sum(maximum - minimum for minimum, _, maximum in self.dims.values())

    def takes(self, dims: Mapping[str, int]) -> bool:
        """Return whether the profile covers these sizes."""
        return all(
            minimum <= dims.get(symbol, minimum) <= maximum
            for symbol, (minimum, _, maximum) in self.dims.items()
        )


class EngineEntry(Model):
    """A part compiled by TensorRT or TensorRT for RTX, for certain GPUs and sizes."""

    part: PartName
    key: Sha256
    """Hash of all inputs and options of the build: builds with equal keys are interchangeable."""
    backend: EngineBackend
    version: Annotated[str, Field(pattern=r"^\d+(\.\d+)+$")]
    """Full version of the backend. Other versions refuse the engine unless it is version-compatible."""
    compute_capabilities: Annotated[
        tuple[Annotated[str, Field(pattern=r"^\d+\.\d$")], ...], Field(min_length=1)
    ]
    """Compute capabilities of the GPUs that the engine was compiled for."""
    gpu: str | None
    """GPU that the engine was built on; None if it was built without one."""
    driver: str | None
    """Version of that GPU's driver."""
    platform: str
    """Operating system and processor, such as ``linux-x86_64``."""
    precision: Precision
    version_compatible: bool
    """The engine also runs in the lean runtime of its version."""
    hardware_compatible: bool
    """The engine also runs on later GPUs."""
    options: BuilderOptions
    """Options that the build was requested with."""
    flags: tuple[str, ...]
    """Names of the flags that the builder set."""
    label: str
    """Short description of the supported sizes."""
    profiles: Annotated[tuple[Profile, ...], Field(min_length=1)]
    file: File
    report: File
    """Report of the engine's layers."""
    onnx: Sha256
    """Hash of the ONNX graph that the engine was built from."""
    weights: Sha256
    """Hash of the weights: that of the ONNX weights, or one that also covers the LoRAs merged into them."""
