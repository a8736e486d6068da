"""Noise levels of a model's timesteps as k-diffusion holds them, in float32."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.sampler_config import NoiseConfig
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule, float32_linspace

Float32Array = NDArray[np.float32]

_MIN_SIGNAL = 4.8973451890853435e-08
"""a_T that AUTOMATIC1111 uses for zero terminal SNR."""
_DISTILLED = 50
"""Timesteps that its LCM sampler knows, of all of the model's."""


class ModelLevels:
    """Noise-to-signal ratios of every ``stride``-th timestep, and the conversion between both.

    The numbers are rounded to float32 after every operation, as in PyTorch: a Brownian path is sampled on a grid of
    1e-6, so that even the last bit of a large level changes its noise.
    """

    def __init__(self, noise: NoiseSchedule, stride: int = 1) -> None:
        self.stride = stride
        self.signal = _signal(noise)[stride - 1 :: stride]  # a_t
        self.sigmas: Float32Array = np.sqrt((np.float32(1) - self.signal) / self.signal)
        self.log_sigmas = rounded(np.log(self.sigmas.astype(np.float64)))
        self.last_timestep = float(len(self.sigmas) * stride - 1)

    @property
    def lowest(self) -> float:
        return float(self.sigmas[0])

    @property
    def highest(self) -> float:
        return float(self.sigmas[-1])

    def even(self, count: int) -> Float32Array:
        """Levels of ``count`` evenly spaced timesteps, from the last to the first; they may be fractions."""
        return self.levels_of(float32_linspace(self.last_timestep, self.stride - 1, count))

    def levels_of(self, timesteps: Float32Array) -> Float32Array:
        """Interpolate log(sigma) between timesteps."""
        indices = (timesteps - np.float32(self.stride - 1)) / np.float32(self.stride)
        indices = np.clip(indices, np.float32(0), np.float32(len(self.sigmas) - 1))
        low, high = np.floor(indices).astype(int), np.ceil(indices).astype(int)
        share = indices - low.astype(np.float32)
        log_levels = (np.float32(1) - share) * self.log_sigmas[low] + share * self.log_sigmas[high]
        return rounded(np.exp(log_levels.astype(np.float64)))

    def nearest_timesteps(self, levels: list[float]) -> list[float]:
        """Timesteps whose levels are nearest, by their logarithms."""
        distances = np.abs(np.log(np.array(levels))[:, None] - self.log_sigmas)
        nearest = distances.argmin(1) * self.stride + self.stride - 1
        return [float(timestep) for timestep in nearest]


def distilled(noise: NoiseSchedule) -> ModelLevels:
    """Levels of the timesteps that the LCM sampler knows: 19, 39, ... of 1000."""
    return ModelLevels(noise, max(noise.config.num_train_timesteps // _DISTILLED, 1))


def rounded(values: NDArray[np.float64]) -> Float32Array:
    """Round float64 to float32: nearly always the result of PyTorch's float32 function."""
    return values.astype(np.float32)


def _signal(noise: NoiseSchedule) -> Float32Array:
    """a_t, computed in float64 as in the original code, whereas diffusers rounds the betas."""
    config = noise.config
    if config.rescale_betas_zero_snr:
        return rounded(np.append(noise.alphas_cumprod[:-1], _MIN_SIGNAL))
    return rounded(np.cumprod(1 - _betas(config), dtype=np.float64))


def _betas(config: NoiseConfig) -> NDArray[np.float64]:
    if config.beta_schedule == "linear":
        return np.linspace(config.beta_start, config.beta_end, config.num_train_timesteps)
    ends = math.sqrt(config.beta_start), math.sqrt(config.beta_end)
    betas: NDArray[np.float64] = np.linspace(*ends, config.num_train_timesteps) ** 2
    return betas
