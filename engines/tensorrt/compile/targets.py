"""The GPUs that an engine is built for, by compute capability."""

from __future__ import annotations

from typing import Any

from sd2rt.engines.bundle.engine_entry import BuilderOptions
from sd2rt.engines.cuda.gpu_info import GpuFacts, sm_number
from sd2rt.engines.errors import MissingDependencyError, RequestError

_PORTABLE = ("8.0", "8.6", "8.9", "12.0")
"""What TensorRT for RTX builds for where nothing is said; newer GPUs run it too."""


def targets_of(trt: Any, options: BuilderOptions, gpu: GpuFacts | None) -> tuple[str, ...]:
    """The compute capabilities to build for, none for the backend's own choice.

    Args:
        trt: the backend's module.
        gpu: the one at hand.

    Raises:
        RequestError: the options ask for what the backend cannot do.
        MissingDependencyError: it takes a GPU, and there is none.
    """
    asked = options.compute_capabilities
    if options.backend == "tensorrt":
        if asked:
            raise RequestError("--sm is for TensorRT for RTX: TensorRT builds for the GPU at hand alone")
        if gpu is None:
            raise MissingDependencyError(
                "TensorRT builds on a GPU, and there is none here: build there, or give --backend tensorrt-rtx"
            )
        return ()
    known = sorted(
        (f"{name[2:-1]}.{name[-1]}" for name in trt.ComputeCapability.__members__ if name.startswith("SM")),
        key=float,
    )
    if options.portable and asked:
        raise RequestError("--portable builds for every GPU, --sm for some: give one of them")
    for item in asked:
        if item not in known:
            valid = ", ".join(map(sm_number, known))
            raise RequestError(f"--sm {sm_number(item)}: {options.backend} builds for {valid}")
    if not asked and not options.portable and gpu is None:
        raise MissingDependencyError(
            "there is no GPU here to build for: give --sm 89 (RTX 40), --sm 120 (RTX 50) and so on, or --portable"
        )
    if not asked and not options.portable and gpu is not None:
        return (gpu.compute_capability,) if gpu.compute_capability in known else ()
    return asked


def capabilities_of(
    options: BuilderOptions, targets: tuple[str, ...], gpu: GpuFacts | None
) -> tuple[str, ...]:
    """The compute capabilities that an engine runs on; of one for all GPUs, those that it is built for.

    Args:
        targets: see :func:`targets_of`.
    """
    if options.portable or gpu is None:
        return targets or _PORTABLE
    return targets or (gpu.compute_capability,)
