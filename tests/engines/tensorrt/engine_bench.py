"""Build, open and run a decoder's engine on a simulated GPU and a simulated TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd2rt.engines.bundle.engine_entry import EngineEntry
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.cuda.device import CudaDevice
from sd2rt.engines.errors import BundleError
from sd2rt.engines.tensorrt.engine import TensorRtEngine

from ..simulated_gpu import SimulatedGpu
from ..simulated_tensorrt import build, make_tensorrt

SIZES = {"B": (1, 1, 4), "h": (8, 8, 8), "w": (8, 8, 8)}
WIDE = {"B": (1, 1, 2), "h": (8, 8, 8), "w": (16, 16, 16)}
DIMS = {"B": 1, "h": 8, "w": 8}


class Bench:
    """Builds engines of the decoder in a folder and opens them."""

    def __init__(self, gpu: SimulatedGpu, device: CudaDevice, bundle: Path, folder: Path) -> None:
        opened = open_bundle(bundle)
        self.gpu, self.device, self.folder = gpu, device, folder
        self.part: Part = opened.manifest.parts["decoder"]
        self.onnx = opened.file(self.part.onnxruntime)
        self.module = make_tensorrt(gpu)

    def build(self, module: Any = None, **options: Any) -> EngineEntry:
        profiles = options.pop("profiles", [SIZES, WIDE])
        module = module or self.module
        return build(self.folder, "decoder", self.part, self.onnx, profiles, module=module, **options)

    def open(self, entry: EngineEntry, module: Any = None, **options: Any) -> TensorRtEngine:
        module = module or self.module
        return TensorRtEngine(self.part, entry, self.folder, self.device, module, **options)

    def path(self, entry: EngineEntry) -> Path:
        return self.folder / entry.file.path

    def refused(self, entry: EngineEntry, module: Any = None) -> str:
        with pytest.raises(BundleError) as caught:
            self.open(entry, module)
        assert "\n" not in str(caught.value)
        return str(caught.value)


def decode(engine: TensorRtEngine, dims: dict[str, int] = DIMS) -> Any:
    session = engine.session(dims)
    buffer = session.buffers["latents"]
    buffer.write(np.random.default_rng(0).standard_normal(buffer.shape).astype(np.float32))
    session.launch()
    return session.buffers["image"].read()
