"""The weights of a linear multistep method: integrals of the polynomial through the last values."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod


def weights_of(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """The weights w that integrate exactly what goes through values at the nodes: sum_k w_k nodes_k**j = moments_j.

    As many moments as nodes; the nodes differ. For the few nodes of a sampler this is faster in plain numbers than
    any array's solver.
    """
    weights = []
    for k, node in enumerate(nodes):
        others = [*nodes[:k], *nodes[k + 1 :]]
        # Of the polynomial that is 0 at the others, from the constant up.
        coefficients = [1.0]
        for other in others:
            shifted = [0.0, *coefficients]
            coefficients = [a - other * b for a, b in zip(shifted, [*coefficients, 0.0], strict=True)]
        total = sum(c * moment for c, moment in zip(coefficients, moments, strict=True))
        weights.append(total / prod(node - other for other in others))
    return weights
