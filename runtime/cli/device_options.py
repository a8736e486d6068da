"""Options for the hardware and software that networks run on; the environment may set them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import typer

from sd2rt.engines.bundle.engine_entry import BackendName
from sd2rt.engines.option_groups import OptionGroup
from sd2rt.runtime.cli import parsing


@dataclass(frozen=True, slots=True)
class DeviceOptions(OptionGroup):
    """Hardware and software that the networks run on."""

    panel: ClassVar[str] = "Device"

    device: Annotated[str, typer.Option(envvar="SD2RT_DEVICE", help="cpu, cuda or cuda:N.")] = "cpu"
    backend: Annotated[
        BackendName,
        typer.Option(
            envvar="SD2RT_BACKEND",
            help="Inference engine; auto takes the bundle's TensorRT engines if they fit the GPU, else ONNX Runtime.",
        ),
    ] = "auto"
    precision: Annotated[
        Literal["bf16", "bf16-decoder", "fp16", "fp32"] | None,
        typer.Option(
            envvar="SD2RT_PRECISION",
            help="bf16: multiply in bfloat16 on CPUs that support it (OpenVINO); bf16-decoder: only in the decoder; "
            "default: the bundle's precision.",
            show_default=False,
        ),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(envvar="SD2RT_THREADS", min=1, help="CPU threads; default: one per core."),
    ] = None
    allow_cpu_fallback: Annotated[
        bool,
        typer.Option(
            "--allow-cpu-fallback",
            help="On a GPU, warn about operators that ONNX Runtime would run on the CPU, instead of refusing them.",
        ),
    ] = False

    def opening(self, bundle: str | os.PathLike[str]) -> dict[str, Any]:
        """Arguments of :meth:`sd2rt.Pipeline.open` for a bundle.

        Raises:
            RequestError: the precision is unknown, or is chosen when a bundle is built and is not this one's.
        """
        return {
            "device": self.device,
            "backend": self.backend,
            "precision": parsing.precision(self.precision, bundle),
            "threads": self.threads,
            "allow_cpu_fallback": self.allow_cpu_fallback,
        }


@dataclass(frozen=True, slots=True)
class TiledDeviceOptions(DeviceOptions):
    """The same for commands that make images of any size."""

    tile: Annotated[
        int | None,
        typer.Option(help="Longest side of latents that are encoded, decoded or upscaled in one piece."),
    ] = None
