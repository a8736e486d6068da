"""Kernels that a call launches, and the time of one at a GPU's assumed rates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from benchmarks.cost_model.assumptions import H100, Gpu, Scenario, assumed

Kind = Literal[
    "convolution", "layout conversion", "convolution bias", "bias", "product", "attention", "transpose", "group norm",
    "layer norm", "activation", "residual", "copy", "step",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
"""``group norm`` includes a SiLU behind it; ``activation`` is GEGLU and other SiLUs; ``copy`` concatenates, splits
and resizes; ``step`` is what a denoiser does around its network, and its embedding of the timestep."""

Movement = Literal["copies", "broadcasts", "moves", "sums"]
Engine = Literal["gemm", "conv", "core_conv", "flash", "efficient", "cudnn", "fused_mha", "cores"]
"""The unit and library that do a kernel's operations; ``cores`` are float32 outside tensor cores, at their nominal
rate."""

_TILES = ((256, 128, 1.0), (128, 128, 0.95), (128, 64, 0.85), (64, 64, 0.7))
"""Rows and columns of a result that one block computes, and the share of the best rate that such blocks reach."""
_QUERIES = 128
_LEAST_DEPTH = 512
"""Least depth of a part when a product's sum is split."""
_SPLIT = 0.9
"""Share of the rate that is left when a product's sum is split."""


@dataclass(frozen=True, slots=True)
class Product:
    """Shape of a matrix product, or of a convolution or attention seen as one."""

    groups: int
    rows: int
    columns: int
    depth: int


@dataclass(frozen=True, slots=True)
class Kernel:
    """One or several launches of one kernel."""

    node: str
    kind: Kind
    read: int = 0
    """Bytes of activations."""
    written: int = 0
    weights: int = 0
    """Bytes of weights, read from memory in every call."""
    operations: int = 0
    engine: Engine = "cores"
    movement: Movement = "copies"
    product: Product | None = None
    launches: int = 1
    optional: bool = False
    """A conversion of a convolution's output, which the favourable scenario has not."""

    @property
    def bytes(self) -> int:
        return self.read + self.written + self.weights

    def microseconds(self, scenario: Scenario, gpu: Gpu = H100) -> float:
        """Predicted time: the fixed time of its launches, and the longer of its operations and its bytes."""
        if self.optional and assumed("converted", scenario) < 3:
            return 0.0
        busy = max(self._computing(scenario, gpu), self._moving(scenario, gpu))
        return self.launches * assumed("fixed", scenario) + busy * 1e6

    def _computing(self, scenario: Scenario, gpu: Gpu) -> float:
        if not self.operations:
            return 0.0
        if self.engine == "cores":
            return self.operations / gpu.core_rate
        rate = gpu.core_rate if self.engine == "core_conv" else gpu.tensor_rate
        filled = 1.0
        if self.product is not None and self.kind == "attention":
            filled = attention_filling(self.product, gpu.multiprocessors)
        elif self.product is not None:
            filled = filling(self.product, int(assumed("most_splits", scenario)), gpu.multiprocessors)
        return self.operations / (rate * assumed(self.engine, scenario) * filled)

    def _moving(self, scenario: Scenario, gpu: Gpu) -> float:
        memory = gpu.memory_rate * assumed("memory", scenario)
        activations = self.read + self.written
        cached = activations <= assumed("cache_bytes", scenario) * gpu.cache * 1e6
        rate = assumed("cache_rate", scenario) * gpu.cache * 1e12 if cached else memory
        return activations / (rate * assumed(self.movement, scenario)) + self.weights / memory


def filling(product: Product, most_splits: int, multiprocessors: int) -> float:
    """Share of the multiprocessors' work that is useful: whole waves of whole tiles, by the best tile.

    A product with few tiles may split its sum among blocks, if that sum is long.
    """
    best = 0.0
    for rows, columns, share in _TILES:
        tiles = product.groups * math.ceil(product.rows / rows) * math.ceil(product.columns / columns)
        splits = 1
        while splits <= most_splits:
            if splits == 1 or product.depth // splits >= _LEAST_DEPTH:
                waves = math.ceil(tiles * splits / multiprocessors)
                useful = product.groups * product.rows * product.columns * splits
                filled = useful / (waves * multiprocessors * rows * columns)
                best = max(best, filled * share * (1.0 if splits == 1 else _SPLIT))
            splits *= 2
    return min(best, 1.0)


def attention_filling(product: Product, multiprocessors: int) -> float:
    """The same for fused attention: a block has 128 queries of one head, and takes keys in blocks of 128.

    Args:
        product: groups are samples times heads, rows queries, depth keys.
    """
    blocks = product.groups * math.ceil(product.rows / _QUERIES)
    waves = math.ceil(blocks / multiprocessors)
    useful = product.groups * product.rows * product.depth
    return useful / (waves * multiprocessors * _QUERIES * math.ceil(product.depth / _QUERIES) * _QUERIES)


def milliseconds(kernels: Iterable[Kernel], scenario: Scenario, gpu: Gpu = H100) -> dict[Kind, float]:
    """Predicted time of a call by kind."""
    totals: dict[Kind, float] = dict.fromkeys(KINDS, 0.0)
    for kernel in kernels:
        totals[kernel.kind] += kernel.microseconds(scenario, gpu) / 1e3
    return totals
