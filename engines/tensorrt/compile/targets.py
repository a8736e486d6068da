"""Choose the compute capabilities that an engine is built for."""

from __future__ import annotations

from typing import Any

from sd2rt.engines.bundle.engine_entry import BuilderOptions
from sd2rt.engines.cuda.gpu_info import GpuFacts, sm_number
from sd2rt.engines.errors import MissingDependencyError, RequestError

_PORTABLE = ("8.0", "8.6", "8.9", "12.0")
"""Default targets of TensorRT for RTX."""


def targets_of(trt: Any, options: BuilderOptions, gpu: GpuFacts | None) -> tuple[str, ...]:
    """The compute capabilities to build for; empty to leave the choice to the backend.

    Args:
        trt: the backend's module.
        gpu: the installed GPU, or None.

    Raises:
        RequestError: the backend does not support the options.
        MissingDependencyError: a GPU is needed, and there is none.
    """
    requested = options.compute_capabilities
    if options.backend == "tensorrt":
        if requested:
            raise RequestError("--sm is for TensorRT for RTX: TensorRT builds only for the installed GPU")
        if gpu is None:
            raise MissingDependencyError(
                "TensorRT needs a GPU to build, and there is none: build on a GPU, or use --backend tensorrt-rtx"
            )
        return ()
    supported = sorted(
        (f"{name[2:-1]}.{name[-1]}" for name in trt.ComputeCapability.__members__ if name.startswith("SM")),
        key=float,
    )
    if options.portable and requested:
        raise RequestError("--portable builds for every GPU, --sm for some: use one of them")
    for item in requested:
        if item not in supported:
            valid = ", ".join(map(sm_number, supported))
            raise RequestError(f"--sm {sm_number(item)}: {options.backend} builds for {valid}")
    if not requested and not options.portable and gpu is None:
        raise MissingDependencyError(
            "no GPU found to build for: add --sm 89 (RTX 40), --sm 120 (RTX 50) and so on, or --portable"
        )
    if not requested and not options.portable and gpu is not None:
        return (gpu.compute_capability,) if gpu.compute_capability in supported else ()
    return requested


def capabilities_of(
    options: BuilderOptions, targets: tuple[str, ...], gpu: GpuFacts | None
) -> tuple[str, ...]:
    """The compute capabilities that an engine has code for.

    Args:
        targets: the result of :func:`targets_of`.
    """
    if options.portable or gpu is None:
        return targets or _PORTABLE
    return targets or (gpu.compute_capability,)
