"""With the CUDA provider, ONNX Runtime runs only shape arithmetic on the CPU, so each part can be captured."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.onnxruntime.cpu_fallback import SHAPE_ARITHMETIC, WITHOUT_CUDA_KERNEL

from .gpu_placement import cpu_operators, memory_copies, optimised
from .test_graph_revision import BUNDLES


@pytest.mark.parametrize("name", BUNDLES)
def test_nothing_is_copied_between_the_host_and_a_gpu(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The check of CUDA sessions accepts exactly what the replay leaves to the CPU."""
    bundle = open_bundle(Path(request.getfixturevalue(BUNDLES[name])))
    assert len(bundle.manifest.parts) >= 3
    for part in bundle.manifest.parts.values():
        path = bundle.file(part.onnx)
        model = optimised(path, tmp_path / "optimised.onnx")
        operators = Counter(node.op_type for node in model.graph.node)
        on_cpu = cpu_operators(model)
        assert set(on_cpu) <= SHAPE_ARITHMETIC | WITHOUT_CUDA_KERNEL, (path, on_cpu)
        for operator in SHAPE_ARITHMETIC & set(on_cpu):
            assert on_cpu[operator] <= {onnx.TensorProto.INT64}, (path, operator)
        pooling = [node for node in model.graph.node if node.op_type == "MaxPool"]
        assert len(memory_copies(model)) == 2 * len(pooling), (path, operators)
        # The finite check is one reduction, not a test of each value.
        assert not {"IsInf", "IsNaN"} & set(operators), path


def test_the_graph_for_cpus_would_be_copied(small_bundle: Path, tmp_path: Path) -> None:
    """So sessions on a GPU open the other one: each group normalisation of this one has no CUDA kernel."""
    bundle = open_bundle(small_bundle)
    model = optimised(bundle.file(bundle.part("decoder").onnxruntime), tmp_path / "optimised.onnx")
    normalisations = [node for node in model.graph.node if node.op_type == "InstanceNormalization"]
    assert len(memory_copies(model)) == 2 * len(normalisations) > 0


class Spread(nn.Module):
    def __init__(self, correction: int) -> None:
        super().__init__()
        self.correction = correction

    def forward(self, values: Tensor) -> Tensor:
        values = values * 2
        return values / values.flatten(1).std(1, correction=self.correction).reshape(-1, 1, 1)


@pytest.mark.parametrize(("correction", "copied"), [(1, True), (0, False)])
def test_a_count_that_is_computed_from_a_shape_is_found_out(
    tmp_path: Path, correction: int, copied: bool
) -> None:
    """The unbiased deviation needs such a count: the number of values minus one."""
    sides = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    program = torch.onnx.export(
        Spread(correction), (torch.ones(2, 3, 4),), dynamo=True, opset_version=23, dynamic_shapes=(sides,)
    )
    assert program is not None
    program.save(tmp_path / "spread.onnx")
    model = optimised(tmp_path / "spread.onnx", tmp_path / "optimised.onnx")
    assert bool(memory_copies(model)) is copied
