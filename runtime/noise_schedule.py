"""How noisy each training timestep is: a checkpoint's noise configuration as tables."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.sampling import NoiseConfig


class NoiseSchedule:
    """The forward process x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, for t in 0 .. T-1.

    The betas are float32, as the checkpoint was trained with; all that follows from them is float64.
    """

    config: NoiseConfig
    betas: NDArray[np.float32]  # [T]
    alphas_cumprod: NDArray[np.float64]  # [T], a_t
    sigmas: NDArray[np.float64]  # [T], the noise-to-signal ratio sqrt((1 - a_t) / a_t), increasing

    def __init__(self, config: NoiseConfig) -> None:
        self.config = config
        count = config.num_train_timesteps
        if config.beta_schedule == "linear":
            self.betas = _linspace(config.beta_start, config.beta_end, count)
        else:
            self.betas = _linspace(math.sqrt(config.beta_start), math.sqrt(config.beta_end), count) ** 2
        self.alphas_cumprod = np.cumprod(np.float64(1) - self.betas, dtype=np.float64)
        self.sigmas = np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)
        for table in (self.betas, self.alphas_cumprod, self.sigmas):
            table.setflags(write=False)


def _linspace(start: float, end: float, count: int) -> NDArray[np.float32]:
    """torch.linspace in float32, bit for bit where the CPU has AVX2 or AVX-512.

    torch steps from the nearer end, and its vector code rounds each product and sum once. Float64 holds the
    product of two float32 exactly, up to the sum, so one rounding at the end gives the same.
    """
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(max(count - 1, 1)))
    index = np.arange(count)
    rising = np.float64(first) + step * index
    falling = np.float64(last) - step * (count - 1 - index)
    return np.where(index < max(count // 2, 1), rising, falling).astype(np.float32)
