"""Open parts of a bundle with ONNX Runtime on a simulated GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.cuda.device import CudaDevice
from sd2rt.engines.onnxruntime.cuda_engine import OnnxRuntimeCudaEngine


@contextmanager
def open_on_cuda(bundle: Path, name: PartName, **options: Any) -> Iterator[OnnxRuntimeCudaEngine]:
    opened = open_bundle(bundle)
    part = opened.part(name)
    with (
        CudaDevice() as device,
        OnnxRuntimeCudaEngine(part, opened.file(part.onnx), device, threads=1, **options) as engine,
    ):
        yield engine
