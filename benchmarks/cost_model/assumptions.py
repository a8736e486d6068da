"""Assumed rates of an H100 (SXM5), each with its source, and three scenarios drawn from them.

A scenario takes every assumption at once at its favourable, expected or unfavourable value: the range between the
outer two is wide on purpose, since nothing here has been measured on the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Scenario = Literal["low", "expected", "high"]
"""Named by the predicted time: ``low`` has the favourable value of every assumption."""
SCENARIOS: tuple[Scenario, ...] = ("low", "expected", "high")


@dataclass(frozen=True, slots=True)
class Gpu:
    """Nominal rates of a GPU, from its data sheet: operations and bytes a second."""

    name: str
    multiprocessors: int
    tensor_rate: float
    """Dense products of float16 with sums in float32."""
    core_rate: float
    """float32 outside the tensor cores."""
    memory_rate: float
    cache: float = 1.0
    """Its L2 cache's rate and size, as a share of an H100's: assumed."""


H100 = Gpu("H100", 132, 989.4e12, 66.9e12, 3.35e12)
A800 = Gpu("A800", 108, 312e12, 19.5e12, 2.039e12, cache=0.8)
"""A GPU with published figures, to check the assumptions on. Its libraries reach larger shares than an H100's."""


@dataclass(frozen=True, slots=True)
class Assumption:
    """A value that the prediction needs and nobody has measured for these kernels."""

    label: str
    unit: str
    low: float
    expected: float
    high: float
    source: str

    def value(self, scenario: Scenario) -> float:
        """The value in a scenario."""
        return float(getattr(self, scenario))


_DATA_SHEET = "assumed; the rate itself is NVIDIA's data sheet"
_ASSUMED = "assumed"

ASSUMPTIONS: dict[str, Assumption] = {
    "memory": Assumption(
        "large copies, of the memory's 3.35 TB/s", "share", 0.92, 0.88, 0.80,
        "a copy of 8.6 GB on an H200 moved 4.3 of its 4.8 TB/s",
    ),
    "cache_rate": Assumption(
        "tensors that the L2 cache still holds", "TB/s", 7.0, 5.5, 4.0, "assumed, from published microbenchmarks"
    ),
    "cache_bytes": Assumption(
        "bytes of a kernel's tensors that the cache still holds", "MB", 40.0, 25.0, 15.0,
        "assumed: the cache has 50 MB in two halves",
    ),
    "fixed": Assumption(
        "fixed time of a kernel in a CUDA graph: launch, first and last wave", "us", 1.5, 2.2, 3.5, _ASSUMED
    ),
    "gemm": Assumption(
        "matrix products that fill the GPU, of 989 TFLOP/s", "share", 0.80, 0.70, 0.55,
        "8192 x 8192 x 8192 in bf16 reached 788 TFLOP/s on an H200; smaller ones reach less: assumed",
    ),
    "conv": Assumption(
        "convolutions by tensor cores that fill the GPU, of 989 TFLOP/s", "share", 0.70, 0.55, 0.40, _ASSUMED
    ),
    "core_conv": Assumption(
        "convolutions without tensor cores, of 67 TFLOP/s", "share", 0.85, 0.65, 0.45, _ASSUMED
    ),
    "flash": Assumption(
        "FlashAttention 2 with heads of 64, of 989 TFLOP/s", "share", 0.38, 0.33, 0.25,
        "assumed, from published curves of FlashAttention 2 on an H100",
    ),
    "efficient": Assumption(
        "memory-efficient attention (CUTLASS), of 989 TFLOP/s", "share", 0.25, 0.18, 0.12, _ASSUMED
    ),
    "cudnn": Assumption(
        "cuDNN's attention with heads of 64, of 989 TFLOP/s", "share", 0.50, 0.42, 0.33,
        "assumed, from published curves of cuDNN on an H100",
    ),
    "fused_mha": Assumption(
        "TensorRT's fused attention, of 989 TFLOP/s", "share", 0.45, 0.35, 0.25, _ASSUMED
    ),
    "most_splits": Assumption("parts that a product's sums are split into, at most", "", 8.0, 4.0, 1.0, _ASSUMED),
    "copies": Assumption(
        "contiguous elementwise kernels, of a copy's rate", "share", 1.0, 0.9, 0.75, _DATA_SHEET
    ),
    "broadcasts": Assumption(
        "elementwise kernels with broadcasting, of a copy's rate", "share", 0.9, 0.7, 0.5, _DATA_SHEET
    ),
    "moves": Assumption(
        "transposes, layout conversions, concatenations, splits, of a copy's rate", "share", 0.85, 0.7, 0.5,
        _DATA_SHEET,
    ),
    "sums": Assumption("reductions and normalisations, of a copy's rate", "share", 0.9, 0.75, 0.5, _DATA_SHEET),
    "converted": Assumption(
        "layout conversions that a convolution in NCHW runs: its input, its weights, its output", "of 3",
        2.0, 3.0, 3.0, "seen in published profiles of PyTorch with the same library; in the favourable case the "
        "kernel writes NCHW itself",
    ),
}  # fmt: skip
"""By name. Times are the sum over kernels of the fixed time plus the longer of operations and bytes."""


def assumed(name: str, scenario: Scenario) -> float:
    """Value of an assumption in a scenario, in the unit of the table."""
    return ASSUMPTIONS[name].value(scenario)
