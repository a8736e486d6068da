"""Noise levels of all training timesteps, computed from a checkpoint's noise configuration."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.sampler_config import NoiseConfig

_MIN_SIGNAL = 2.0**-24
"""a_T used in place of zero for noise-to-signal ratios, as in diffusers."""


class NoiseSchedule:
    """The forward process x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, for t in 0 .. T-1.

    The betas are float32, as in the checkpoint's training; everything computed from them is float64.
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
            self.betas = float32_linspace(config.beta_start, config.beta_end, count)
        else:
            self.betas = (
                float32_linspace(math.sqrt(config.beta_start), math.sqrt(config.beta_end), count) ** 2
            )
        if config.rescale_betas_zero_snr:
            self.betas = _rescale_zero_snr(self.betas)
        self.alphas_cumprod = np.cumprod(np.float64(1) - self.betas, dtype=np.float64)
        a = self.alphas_cumprod
        if config.rescale_betas_zero_snr:
            a = np.append(a[:-1], _MIN_SIGNAL)
        self.sigmas = np.sqrt((1 - a) / a)
        self.log_sigmas = np.log(self.sigmas)
        for table in (self.betas, self.alphas_cumprod, self.sigmas, self.log_sigmas):
            table.setflags(write=False)


def _rescale_zero_snr(betas: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rescale betas to zero terminal SNR: algorithm 1 of arXiv:2305.08891.

    Float32 as in PyTorch, whose cumprod accumulates in float64 and rounds each product.
    """
    one = np.float32(1)
    signal = np.sqrt(np.cumprod(one - betas, dtype=np.float64).astype(np.float32))
    first, last = signal[0], signal[-1]
    alphas_cumprod = ((signal - last) * (first / (first - last))) ** 2
    alphas = np.concatenate([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
    rescaled: NDArray[np.float32] = one - alphas
    return rescaled


def float32_linspace(start: float, end: float, count: int) -> NDArray[np.float32]:
    """``torch.linspace`` in float32, bit for bit as on CPUs with AVX2 or AVX-512.

    PyTorch steps from the nearer end with fused multiply-adds. Float64 holds the product of two float32 numbers
    exactly, so rounding once at the end gives the same result.
    """
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(max(count - 1, 1)))
    index = np.arange(count)
    rising = np.float64(first) + step * index
    falling = np.float64(last) - step * (count - 1 - index)
    return np.where(index < max(count // 2, 1), rising, falling).astype(np.float32)
