"""LyCORIS's changes by products of matrices (arXiv:2309.14859): LoHa's Hadamard and LoKr's Kronecker product."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sd2rt.engines.interface import Array
from sd2rt.engines.lora.change import F32, Shape


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Product of two factors, with a core between them for convolutions (Tucker decomposition)."""

    first: F32  # [O, r]; with a core [r, O]
    second: F32  # [r, I] or [r, I * kh * kw]
    core: F32 | None  # [r, r, kh, kw]

    @property
    def rank(self) -> int:
        """Rank r."""
        return int(self.second.shape[0])

    @property
    def valid(self) -> bool:
        """True if the factors can be multiplied."""
        if self.first.ndim != 2 or self.second.ndim != 2 or 0 in (*self.first.shape, *self.second.shape):
            return False
        if self.core is None:
            return bool(self.first.shape[1] == self.rank)
        return self.core.ndim == 4 and bool(self.core.shape[:2] == (self.first.shape[0], self.rank))

    @property
    def shape(self) -> Shape:
        """Shape of the product: [O, I], [O, I * kh * kw] or [O, I, kh, kw]."""
        if self.core is None:
            return (self.first.shape[0], self.second.shape[1])
        return (self.first.shape[1], self.second.shape[1], *self.core.shape[2:])

    @property
    def is_zero(self) -> bool:
        """True if a factor is zero."""
        factors = [self.first, self.second, *([] if self.core is None else [self.core])]
        return not all(each.any() for each in factors)

    def product(self) -> F32:
        """Multiply the factors."""
        product: F32
        if self.core is None:
            product = self.first @ self.second
        else:
            product = np.einsum("ijkl,ip,jr->prkl", self.core, self.first, self.second, optimize=True)
        return product


@dataclass(frozen=True, slots=True, eq=False)
class Hadamard:
    """LoHa: ``factor * (a1 @ b1) * (a2 @ b2)``, element by element."""

    first: Pair
    second: Pair
    factor: float

    @property
    def shape(self) -> Shape:
        """Shape of both products."""
        return self.first.shape

    @property
    def is_zero(self) -> bool:
        """True if a factor is zero."""
        return self.factor == 0 or self.first.is_zero or self.second.is_zero

    def fits(self, expected: Shape) -> bool:
        """True if the weight has these rows, and as many elements in each."""
        return _rows_and_columns(self.shape) == _rows_and_columns(expected)

    def delta(self, scale: float, weight: Array) -> F32:
        """Compute the change."""
        product = self.first.product()
        product *= self.second.product()
        product *= np.float32(scale * self.factor)
        return product


@dataclass(frozen=True, slots=True, eq=False)
class Kronecker:
    """LoKr: ``factor * kron(first, second)``, each a matrix or a product of two."""

    first: F32 | Pair  # [O1, I1]
    second: F32 | Pair  # [O2, I2], [O2, I2 * kh * kw] or [O2, I2, kh, kw]
    factor: float

    @property
    def shape(self) -> Shape:
        """Shape of the Kronecker product."""
        outer, inner = self.first.shape, self.second.shape
        return (outer[0] * inner[0], outer[1] * inner[1], *inner[2:])

    @property
    def is_zero(self) -> bool:
        """True if a factor is zero."""
        zero = [
            part.is_zero if isinstance(part, Pair) else not part.any() for part in (self.first, self.second)
        ]
        return self.factor == 0 or any(zero)

    def fits(self, expected: Shape) -> bool:
        """True if the weight has these rows, and as many elements in each, that the product can be laid out in."""
        inputs = len(expected) > 1 and expected[1] % self.first.shape[1] == 0
        return inputs and _rows_and_columns(self.shape) == _rows_and_columns(expected)

    def delta(self, scale: float, weight: Array) -> F32:
        """Compute the change."""
        outer, inner = (
            part.product() if isinstance(part, Pair) else part for part in (self.first, self.second)
        )
        rows, inputs = outer.shape
        inner = inner.reshape(inner.shape[0], weight.shape[1] // inputs, *weight.shape[2:])
        scaled = outer * np.float32(scale * self.factor)
        product: F32 = np.einsum("ab,cd...->acbd...", scaled, inner)
        return product.reshape(rows * inner.shape[0], -1)


def _rows_and_columns(shape: Shape) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])
