"""Signal and noise scales alpha, sigma and lambda of exponential integrators, from noise-to-signal ratios."""

from __future__ import annotations

from math import inf, log, sqrt


class Signal:
    """Noise levels of a grid as alpha, sigma (alpha**2 + sigma**2 = 1) and lambda = log(alpha / sigma)."""

    def __init__(self, levels: list[float]) -> None:
        self.alpha = [1 / sqrt(level**2 + 1) for level in levels]
        self.sigma = [level * alpha for level, alpha in zip(levels, self.alpha, strict=True)]
        self.lambdas = [inf if level == 0 else -log(level) for level in levels]

    def start(self, index: int) -> tuple[float, float]:
        """Factors of image and noise for a start from an image at this level."""
        return self.alpha[index], self.sigma[index]
