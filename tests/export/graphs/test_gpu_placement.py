"""ONNX Runtime would run every graph wholly on the GPU, so each can be captured as a CUDA graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from .gpu_placement import memory_copies, optimised
from .test_graph_revision import BUNDLES


@pytest.mark.parametrize("name", BUNDLES)
def test_nothing_is_copied_between_the_host_and_a_gpu(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle = Path(request.getfixturevalue(BUNDLES[name]))
    graphs = sorted(bundle.glob("*/*.onnx"))
    assert len(graphs) >= 4
    for path in graphs:
        model = optimised(path, tmp_path / "optimised.onnx")
        operators = Counter(node.op_type for node in model.graph.node)
        assert memory_copies(model) == [], (path, operators)
        # The finite check is one reduction, not a test of each value.
        assert not {"IsInf", "IsNaN"} & set(operators), path


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
