"""How noisy each training timestep is: a checkpoint's noise configuration as tables."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.sampler_config import NoiseConfig

_LEAST_SIGNAL = 2.0**-24
"""What samplers that reckon in noise-to-signal ratios take for a signal of zero, as diffusers does."""


class NoiseSchedule:
    """The forward process x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, for t in 0 .. T-1.

    The betas are float32, as the checkpoint was trained with; all that follows from them is float64.
    """

    config: NoiseConfig
    betas: NDArray[np.float32]  # [T]
    alphas_cumprod: NDArray[np.float64]  # [T], a_t
    sigmas: NDArray[np.float64]  # [T], the noise-to-signal ratio sqrt((1 - a_t) / a_t), increasing
    log_sigmas: NDArray[np.float64]  # [T]

    def __init__(self, config: NoiseConfig) -> None:
        self.config = config
        count = config.num_train_timesteps
        if config.beta_schedule == "linear":
            self.betas = _linspace(config.beta_start, config.beta_end, count)
        else:
            self.betas = _linspace(math.sqrt(config.beta_start), math.sqrt(config.beta_end), count) ** 2
        if config.rescale_betas_zero_snr:
            self.betas = _without_signal_at_the_end(self.betas)
        self.alphas_cumprod = np.cumprod(np.float64(1) - self.betas, dtype=np.float64)
        a = self.alphas_cumprod
        if config.rescale_betas_zero_snr:
            a = np.append(a[:-1], _LEAST_SIGNAL)
        self.sigmas = np.sqrt((1 - a) / a)
        self.log_sigmas = np.log(self.sigmas)
        for table in (self.betas, self.alphas_cumprod, self.sigmas, self.log_sigmas):
            table.setflags(write=False)


def _without_signal_at_the_end(betas: NDArray[np.float32]) -> NDArray[np.float32]:
    """Algorithm 1 of arXiv:2305.08891, in float32 as torch computes it: products are added up in float64 and
    rounded one by one."""
    one = np.float32(1)
    signal = np.sqrt(np.cumprod(one - betas, dtype=np.float64).astype(np.float32))
    first, last = signal[0], signal[-1]
    kept = ((signal - last) * (first / (first - last))) ** 2
    alphas = np.concatenate([kept[:1], kept[1:] / kept[:-1]])
    rescaled: NDArray[np.float32] = one - alphas
    return rescaled


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
