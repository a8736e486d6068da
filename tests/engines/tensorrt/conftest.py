from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sd2rt.engines.cuda.device import CudaDevice

from ..simulated_gpu import SimulatedGpu
from .engine_bench import Bench


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimulatedGpu:
    made = SimulatedGpu(pace="random")
    made.install(monkeypatch)
    return made


@pytest.fixture
def bench(gpu: SimulatedGpu, small_bundle: Path, tmp_path: Path) -> Iterator[Bench]:
    with CudaDevice() as device:
        yield Bench(gpu, device, small_bundle, tmp_path)
