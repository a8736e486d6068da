from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from sd2rt.engines.bundle.sampler_config import NoiseConfig
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
@pytest.mark.parametrize(
    ("start", "end", "count"), [(0.00085, 0.012, 1000), (1e-4, 0.02, 1000), (1e-4, 0.02, 37), (0.5, 0.6, 1)]
)
def test_tables_are_those_of_diffusers_betas(
    beta_schedule: Literal["linear", "scaled_linear"], start: float, end: float, count: int
) -> None:
    noise = NoiseSchedule(
        NoiseConfig(
            num_train_timesteps=count,
            beta_start=start,
            beta_end=end,
            beta_schedule=beta_schedule,
            prediction_type="epsilon",
        )
    )
    betas = DDIMScheduler(
        num_train_timesteps=count, beta_start=start, beta_end=end, beta_schedule=beta_schedule
    ).betas

    assert noise.betas.dtype == np.float32
    # torch's own betas differ in the last bit between CPUs with and without fused multiply-add.
    np.testing.assert_array_max_ulp(noise.betas, betas.numpy(), maxulp=2)
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        np.testing.assert_array_equal(noise.betas, betas.numpy())

    alphas_cumprod = torch.cumprod(1 - betas.double(), 0).numpy()
    np.testing.assert_allclose(noise.alphas_cumprod, alphas_cumprod, rtol=1e-6)
    np.testing.assert_allclose(noise.sigmas, np.sqrt(1 / alphas_cumprod - 1), rtol=1e-6)
    assert noise.alphas_cumprod.dtype == noise.sigmas.dtype == np.float64


def test_tables_are_read_only() -> None:
    noise = NoiseSchedule(
        NoiseConfig(
            num_train_timesteps=10,
            beta_start=0.1,
            beta_end=0.2,
            beta_schedule="linear",
            prediction_type="epsilon",
        )
    )
    with pytest.raises(ValueError, match="read-only"):
        noise.alphas_cumprod[0] = 1
