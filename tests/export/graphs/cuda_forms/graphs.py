"""A bundle's graph in some forms, and its outputs beside the plain graph's."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from benchmarks.cuda_forms import operators as counts
from benchmarks.gpu.part_inputs import part_inputs
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle, open_bundle
from sd2rt.engines.bundle.schema import symbols_of
from sd2rt.export.graphs.cuda_forms.forms import apply_forms
from sd2rt.export.graphs.cuda_forms.split_gelu import bias_split_gelu
from sd2rt.export.testing.contrib_operators import reference_run

Array = NDArray[Any]

SIZES = {"B": 2, "R": 4, "P": 1, "L": 77, "h": 8, "w": 12, "M": 16}


class PlainGraph:
    """A copy of a part's folder: ``onnx_ir`` reads no weights of files with several links."""

    def __init__(self, bundle: Path, name: PartName, folder: Path) -> None:
        self.bundle: Bundle = open_bundle(bundle)
        self.part = self.bundle.part(name)
        self.path = folder / Path(self.part.onnx).name
        shutil.copytree((bundle / self.part.onnx).parent, folder, dirs_exist_ok=True)
        dims = {symbol: SIZES[symbol] for symbol in symbols_of(self.part)}
        self.inputs = part_inputs(self.bundle.manifest, name, dims)

    def model(self) -> ir.Model:
        return ir.load(self.path)

    def run(self, path: Path | None = None) -> list[Array]:
        """Outputs of a graph of this folder by ONNX Runtime on the CPU."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            path or self.path, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        outputs: list[Array] = session.run(None, self.inputs)
        return outputs

    def in_forms(self, forms: Collection[str]) -> Path:
        """Write the graph in these forms beside it."""
        model = self.model()
        apply_forms(model, forms)
        return self.written(model)

    def written(self, model: ir.Model) -> Path:
        target = self.path.with_name("forms.onnx")
        ir.save(model, target)
        onnx.checker.check_model(str(target), full_check=not any(node.domain for node in model.graph))
        return target

    def reference(self, forms: Collection[str]) -> list[Array]:
        """Outputs by ``onnx.reference`` of the graph in these forms; GEGLU is one operator at any width."""
        model = self.model()
        apply_forms(model, forms)
        if "bias-split-gelu" in forms:
            bias_split_gelu(model, range(1 << 20))
            assert counts(model)["BiasSplitGelu"] > 0
        return reference_run(onnx.load(self.written(model)), self.inputs)


def assert_near(actual: list[Array], expected: list[Array]) -> None:
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * np.abs(other).max())
