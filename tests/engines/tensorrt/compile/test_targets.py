"""The GPUs that an engine is built for, with a GPU installed and without."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sd2rt.engines.bundle.engine_entry import BuilderOptions
from sd2rt.engines.cuda.gpu_info import GpuFacts
from sd2rt.engines.errors import MissingDependencyError, RequestError
from sd2rt.engines.tensorrt.compile.targets import capabilities_of, targets_of

RTX = SimpleNamespace(
    ComputeCapability=SimpleNamespace(
        __members__=dict.fromkeys(("NONE", "CURRENT", "SM120", "SM75", "SM80", "SM86", "SM89"))
    )
)
ADA, HOPPER = (GpuFacts("a GPU", capability, "CUDA 13.0") for capability in ("8.9", "9.0"))


def rtx(*capabilities: str, portable: bool = False) -> BuilderOptions:
    return BuilderOptions(backend="tensorrt-rtx", compute_capabilities=capabilities, portable=portable)


@pytest.mark.parametrize(
    ("options", "gpu", "targets", "capabilities"),
    [
        (rtx("8.6", "12.0"), None, ("8.6", "12.0"), ("8.6", "12.0")),
        (rtx("8.6"), ADA, ("8.6",), ("8.6",)),
        (rtx(), ADA, ("8.9",), ("8.9",)),
        # The backend itself accepts or refuses a GPU that it does not list.
        (rtx(), HOPPER, (), ("9.0",)),
        (rtx(portable=True), None, (), ("8.0", "8.6", "8.9", "12.0")),
        (rtx(portable=True), ADA, (), ("8.0", "8.6", "8.9", "12.0")),
        (BuilderOptions(backend="tensorrt"), HOPPER, (), ("9.0",)),
    ],
)
def test_targets(
    options: BuilderOptions, gpu: GpuFacts | None, targets: tuple[str, ...], capabilities: tuple[str, ...]
) -> None:
    assert targets_of(RTX, options, gpu) == targets
    assert capabilities_of(options, targets, gpu) == capabilities


@pytest.mark.parametrize(
    ("options", "gpu", "error", "said"),
    [
        (rtx(), None, MissingDependencyError, "no GPU found to build for: add --sm 89"),
        (rtx("9.0"), HOPPER, RequestError, "--sm 90: tensorrt-rtx builds for 75, 80, 86, 89, 120$"),
        (rtx("8.9", portable=True), ADA, RequestError, "use one of them"),
        (BuilderOptions(backend="tensorrt"), None, MissingDependencyError, "TensorRT needs a GPU to build"),
        (
            BuilderOptions(backend="tensorrt", compute_capabilities=("8.9",)),
            ADA,
            RequestError,
            "--sm is for TensorRT for RTX",
        ),
    ],
)
def test_no_targets(options: BuilderOptions, gpu: GpuFacts | None, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        targets_of(RTX, options, gpu)


def test_capabilities_are_named_as_the_backend_names_them() -> None:
    module: Any = pytest.importorskip("tensorrt_rtx")
    assert set(RTX.ComputeCapability.__members__) <= set(module.ComputeCapability.__members__)
