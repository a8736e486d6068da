"""A worker on a machine with two simulated GPUs and a simulated TensorRT; run as a program."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ...engines.simulated_gpu import SimulatedGpu
from ...engines.simulated_tensorrt import make_tensorrt

DEVICES = ("cuda:0", "cuda:1")
_ROOT = Path(__file__).resolve().parents[3]
COMMAND = (
    sys.executable,
    "-P",
    "-c",
    f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from tests.runtime.server.gpu_worker import run; run()",
)
"""Starts a worker."""


def install(monkeypatch: pytest.MonkeyPatch) -> SimulatedGpu:
    """Replace the modules of CUDA and TensorRT in this process."""
    gpu = SimulatedGpu(pace="eager", devices=len(DEVICES))
    gpu.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "tensorrt", make_tensorrt(gpu))
    return gpu


def run() -> None:
    """Work, and end the process."""
    from sd2rt.runtime.server.worker.__main__ import main

    install(pytest.MonkeyPatch())
    sys.exit(main())
