"""Changes of one weight: the interface of all kinds of adapters, and plain low-rank changes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.interface import Array
from sd2rt.engines.weights.shapes import linear_shape

F32 = NDArray[np.float32]
Shape = tuple[int, ...]


class WeightChange(Protocol):
    """Change that an adapter makes to one weight."""

    @property
    def shape(self) -> Shape:
        """Shape of the change, as far as its tensors determine it: kernels may be part of the second axis."""
        ...

    @property
    def is_zero(self) -> bool:
        """True if the change is seen to be zero for every weight."""
        ...

    def fits(self, expected: Shape) -> bool:
        """True if the change can be added to a weight of this shape."""
        ...

    def delta(self, scale: float, weight: Array) -> F32:
        """Compute ``scale`` times the change in float32, with as many elements as the weight.

        Args:
            weight: the original weight in PyTorch's orientation, on which some changes depend.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """Low-rank change of one weight: ``factor * up @ mid @ down``, each a layer without bias."""

    down: F32  # [r, I] or [r, I, kh, kw]
    up: F32  # [O, r] or [O, r, 1, 1]
    mid: F32 | None  # [r, r, kh, kw], with a 1x1 down: LoCon's convolutions of three factors
    factor: float

    @property
    def shape(self) -> Shape:
        """Shape of the weight: [O, I], or [O, I, kh, kw]."""
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return (self.up.shape[0], self.down.shape[1], *kernel)

    @property
    def is_zero(self) -> bool:
        """True if a factor is zero, as that of a LoRA that was not trained."""
        factors = [self.up, self.down, *([] if self.mid is None else [self.mid])]
        return self.factor == 0 or not all(each.any() for each in factors)

    def fits(self, expected: Shape) -> bool:
        """True for the same shape, or a 1x1 convolution for a linear layer."""
        return linear_shape(self.shape) == linear_shape(expected)

    def delta(self, scale: float, weight: Array) -> F32:
        """Compute ``scale * factor * up @ mid @ down`` in float32: [O, I * kh * kw].

        For linear layers the result is in Fortran order, like their weights in most graphs: adding arrays of
        different memory orders takes five times as long.
        """
        rank = self.down.shape[0]
        down = self.down.reshape(rank, -1)
        if self.mid is not None:
            down = np.tensordot(self.mid, down, (1, 0)).transpose(0, 3, 1, 2).reshape(rank, -1)
        # Scale a factor rather than the product, which is a hundred times as large.
        up: F32 = self.up.reshape(-1, rank) * np.float32(scale * self.factor)
        if self.shape[2:] in ((), (1, 1)):
            return (down.T @ up.T).T
        return up @ down


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """Difference of a whole weight or bias: LyCORIS's full fine-tuning and norms, ComfyUI's extracted changes."""

    values: F32

    @property
    def shape(self) -> Shape:
        """Shape of the weight."""
        return self.values.shape

    @property
    def is_zero(self) -> bool:
        """True if all values are zero."""
        return not self.values.any()

    def fits(self, expected: Shape) -> bool:
        """True for the same shape, or a 1x1 convolution for a linear layer."""
        return linear_shape(self.shape) == linear_shape(expected)

    def delta(self, scale: float, weight: Array) -> F32:
        """Compute ``scale * values``."""
        return self.values * np.float32(scale)


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """Change by factors of the channels: (IA)^3 (arXiv:2205.05638), ``factors * weight``.

    LyCORIS stores the factors less 1, PEFT the factors: they are kept less 1.
    """

    factors: F32  # [O] or [I], less 1
    on_input: bool

    @property
    def shape(self) -> Shape:
        """Number of channels, which is all that is known of the weight."""
        return self.factors.shape

    @property
    def is_zero(self) -> bool:
        """True if all factors are zero."""
        return not self.factors.any()

    def fits(self, expected: Shape) -> bool:
        """True if the weight has as many channels."""
        axis = 1 if self.on_input else 0
        return len(expected) > axis and expected[axis] == len(self.factors)

    def delta(self, scale: float, weight: Array) -> F32:
        """Compute ``scale * factors * weight``."""
        factors = self.factors * np.float32(scale)
        if self.on_input:
            axes: Shape = (1, -1, *(1 for _ in weight.shape[2:]))
        else:
            axes = (-1, *(1 for _ in weight.shape[1:]))
        scaled: F32 = np.multiply(weight, factors.reshape(axes), dtype=np.float32)
        return scaled


@dataclass(frozen=True, slots=True, eq=False)
class Decomposed:
    """Weight-decomposed change (DoRA, arXiv:2402.09353): the changed weight gets learned norms.

    The change is ``magnitude * (W + inner) / norm(W + inner) - W``; scales other than 1 scale it as a whole, as in
    AUTOMATIC1111 and ComfyUI, so that 0 leaves the weight as it is. (PEFT scales the inner change.)
    """

    inner: WeightChange
    magnitude: F32  # [O] or [I]
    on_input: bool
    """Norms are of the input's channels: what LyCORIS does by default."""

    @property
    def shape(self) -> Shape:
        """Shape of the inner change."""
        return self.inner.shape

    @property
    def is_zero(self) -> bool:
        """False: it depends on the weight, whose norms may differ from the learned ones."""
        return False

    def fits(self, expected: Shape) -> bool:
        """True if the inner change and the norms fit."""
        axis = 1 if self.on_input else 0
        return self.inner.fits(expected) and expected[axis] == len(self.magnitude)

    def delta(self, scale: float, weight: Array) -> F32:
        """Compute ``scale`` times the change."""
        original = np.asarray(weight, np.float32)
        changed = original + self.inner.delta(1.0, weight).reshape(weight.shape)
        channels, others = weight.shape[:2], math.prod(weight.shape[2:])
        flat = changed.reshape(*channels, others)
        squares = np.einsum(
            "oik,oik->i" if self.on_input else "oik,oik->o", flat, flat, dtype=np.float64, casting="safe"
        )
        norms = np.sqrt(squares)
        # A channel without weights stays so, whatever its norm should be.
        factors = (self.magnitude / np.where(norms == 0, 1, norms)).astype(np.float32)
        changed *= factors.reshape(
            (1, -1, *(1 for _ in weight.shape[2:])) if self.on_input else (-1, *(1 for _ in weight.shape[1:]))
        )
        changed -= original
        changed *= np.float32(scale)
        return changed
