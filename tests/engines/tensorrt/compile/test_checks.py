"""Checks of the graph's tensors before a build, and of the engine's tensors and kernels after it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sd2rt.engines.bundle.engine_entry import BuilderOptions, Profile
from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.schema import Part, Tensor
from sd2rt.engines.errors import BuildError
from sd2rt.engines.tensorrt.compile.checks import (
    check_attention,
    check_engine,
    check_network,
    needs_fused_attention,
)
from sd2rt.engines.tensorrt.compile.layer_report import BuiltTensor, LayerReport
from sd2rt.engines.tensorrt.compile.worker_protocol import BuildTask

PROFILES = (
    Profile(name="a", dims={"B": (1, 1, 1), "h": (8, 8, 8)}),
    Profile(name="b", dims={"B": (2, 4, 4), "h": (8, 8, 8)}),
)
RANGES = (((1, 2, 64),) * 3, ((2, 2, 64), (4, 2, 64), (4, 2, 64)))
INPUT = BuiltTensor("x", True, "float32", (-1, 2, 64), RANGES)
OUTPUT = BuiltTensor("y", False, "float32", (-1, 2, 64))


@pytest.fixture
def task(paper_master: Path) -> BuildTask:
    part = read_manifest(paper_master).parts["denoiser"]
    x, y = (Tensor(name=name, dtype="float32", shape=("B", 2, "8*h")) for name in "xy")
    return BuildTask(
        name="denoiser",
        part=part.model_copy(update={"inputs": (x,), "outputs": (y,)}),
        onnx="model.onnx",
        profiles=PROFILES,
        options=BuilderOptions(backend="tensorrt-rtx"),
        target="engine",
    )


def test_an_engine_as_it_was_asked_for(task: BuildTask) -> None:
    check_engine(LayerReport((), (INPUT, OUTPUT)), task)
    # Backends may fix an output's shape, and need not tell ranges.
    check_engine(LayerReport((), (replace(INPUT, ranges=()), replace(OUTPUT, shape=(4, 2, 64)))), task)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ((INPUT,), r"has the tensors \['x'\], expected \['x', 'y'\]"),
        ((INPUT, replace(OUTPUT, dtype="float16")), "engine's y is float16, expected float32"),
        ((replace(INPUT, shape=(-1, -1, 64)), OUTPUT), r"engine's x is \[-1, -1, 64\]"),
        ((replace(INPUT, shape=(3, 2, 64)), OUTPUT), r"engine's x is \[3, 2, 64\]"),
        ((INPUT, replace(OUTPUT, shape=(-1, 2, 72))), r"engine's y is \[-1, 2, 72\]"),
        ((replace(INPUT, ranges=RANGES[::-1]), OUTPUT), "engine's x takes"),
    ],
)
def test_another_engine(task: BuildTask, tensors: tuple[BuiltTensor, ...], said: str) -> None:
    with pytest.raises(BuildError, match=said):
        check_engine(LayerReport((), tensors), task)


class Network:
    """A network as a parser creates it from a part's graph."""

    def __init__(self, part: Part) -> None:
        self.inputs, self.outputs = map(self._named, (part.inputs, part.outputs))
        self.num_inputs, self.num_outputs = len(self.inputs), len(self.outputs)
        self.get_input, self.get_output = self.inputs.__getitem__, self.outputs.__getitem__

    def _named(self, tensors: tuple[Tensor, ...]) -> list[Any]:
        return [SimpleNamespace(name=tensor.name, dtype=SimpleNamespace(name="FLOAT")) for tensor in tensors]


def test_graph(task: BuildTask) -> None:
    network = Network(task.part)
    check_network(network, task.part)
    network.outputs[0].dtype.name = "BF16"
    with pytest.raises(
        BuildError, match=r"has the tensors \{'y': 'BF16'\}, its manifest says \{'y': 'float32'\}"
    ):
        check_network(network, task.part)


def test_attention_kernels_of_every_profile(task: BuildTask) -> None:
    check_attention(task, 3, 6)
    with pytest.raises(
        BuildError, match=r"no dedicated kernel for 1 of 6 attention layers .*--allow-decomposed"
    ):
        check_attention(task, 3, 5)


@pytest.mark.parametrize(
    ("name", "precision", "decomposed", "needed"),
    [
        ("denoiser", "fp16", False, True),
        ("text_encoder", "fp16", False, True),
        ("denoiser", "fp16", True, False),
        ("denoiser", "fp32", False, False),
        ("decoder", "fp16", False, False),
    ],
)
def test_where_attention_must_be_fused(
    task: BuildTask, name: PartName, precision: str, decomposed: bool, needed: bool
) -> None:
    changed = task.model_copy(
        update={
            "name": name,
            "part": task.part.model_copy(update={"precision": precision}),
            "options": BuilderOptions(backend="tensorrt-rtx", allow_decomposed=decomposed),
        }
    )
    assert needs_fused_attention(changed) is needed
