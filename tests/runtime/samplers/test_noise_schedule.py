from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import pytest
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sd2rt.engines.bundle.sampler_config import NoiseConfig
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule

from .rounded_betas import rounded_betas

Schedule = Literal["linear", "scaled_linear"]


SCHEDULES = pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
RANGES = pytest.mark.parametrize(
    ("start", "end", "count"),
    [(0.00085, 0.012, 1000), (1e-4, 0.02, 1000), (1e-4, 0.006, 1000), (1e-4, 0.02, 37), (0.5, 0.6, 1)],
)

ULPS = {"linear": 2, "scaled_linear": 6}
"""Bounds in float32 ulps between diffusers' betas and correctly rounded ones, on any processor. torch.linspace
multiplies and adds, an ulp off without fused multiply-add; one more ulp is allowed for its library. Squares of
numbers two ulps apart differ by up to 2 * 2 * sqrt(2) ulps, plus rounding."""

RESCALED_ULPS = 32
"""The same bound for rescaled betas, in ulps of the alphas = 1 - beta, times the precision lost when signals nearly
cancel. A square root that is an ulp off changes a signal s by up to 2**-23, and the difference s - s_T by
2**-23 (s + s_T) / (s - s_T), relatively; two of these, squared, change their ratio by 8 times 2**-24. All other
operations together round by 24 times 2**-24 at most."""


def noise_config(
    beta_schedule: Schedule, start: float, end: float, count: int, zero_snr: bool = False
) -> NoiseConfig:
    return NoiseConfig(
        num_train_timesteps=count,
        beta_start=start,
        beta_end=end,
        beta_schedule=beta_schedule,
        prediction_type="epsilon",
        rescale_betas_zero_snr=zero_snr,
    )


def betas_of_diffusers(config: NoiseConfig) -> NDArray[np.float32]:
    actual: NDArray[np.float32] = DDIMScheduler(**config.model_dump()).betas.numpy()
    return actual


@SCHEDULES
@RANGES
def test_betas_are_correctly_rounded(beta_schedule: Schedule, start: float, end: float, count: int) -> None:
    for zero_snr in (False, True) if count > 1 else (False,):
        config = noise_config(beta_schedule, start, end, count, zero_snr)
        actual = NoiseSchedule(config).betas
        assert actual.dtype == np.float32
        np.testing.assert_array_equal(actual, rounded_betas(config))


@settings(deadline=None)
@given(
    st.sampled_from(get_args(Schedule)),
    st.floats(1e-5, 0.01),
    st.floats(1e-5, 0.05),
    st.integers(2, 40),
    st.booleans(),
)
def test_any_betas_are_correctly_rounded(
    beta_schedule: Schedule, start: float, end: float, count: int, zero_snr: bool
) -> None:
    config = noise_config(beta_schedule, start, end, count, zero_snr)
    np.testing.assert_array_equal(NoiseSchedule(config).betas, rounded_betas(config))


@SCHEDULES
@RANGES
def test_betas_are_within_ulps_of_diffusers(
    beta_schedule: Schedule, start: float, end: float, count: int
) -> None:
    config = noise_config(beta_schedule, start, end, count)
    actual, theirs = NoiseSchedule(config).betas, betas_of_diffusers(config)
    np.testing.assert_array_max_ulp(actual, theirs, maxulp=ULPS[beta_schedule])


@SCHEDULES
@RANGES
def test_rescaled_betas_are_within_ulps_of_diffusers(
    beta_schedule: Schedule, start: float, end: float, count: int
) -> None:
    if count == 1:
        return  # The only timestep would have no signal.
    signal = np.sqrt(NoiseSchedule(noise_config(beta_schedule, start, end, count)).alphas_cumprod)
    lost = (signal[:-1] + signal[-1]) / (signal[:-1] - signal[-1])
    config = noise_config(beta_schedule, start, end, count, zero_snr=True)
    actual, theirs = NoiseSchedule(config).betas.astype(np.float64), betas_of_diffusers(config)
    assert actual[-1] == theirs[-1] == 1
    assert (np.abs(actual - theirs)[:-1] <= RESCALED_ULPS * 2**-24 * lost).all()


@SCHEDULES
@RANGES
def test_tables_follow_from_the_betas(beta_schedule: Schedule, start: float, end: float, count: int) -> None:
    noise = NoiseSchedule(noise_config(beta_schedule, start, end, count))
    alphas_cumprod = np.cumprod(1 - noise.betas.astype(np.float64))
    np.testing.assert_allclose(noise.alphas_cumprod, alphas_cumprod, rtol=1e-12)
    np.testing.assert_allclose(noise.sigmas, np.sqrt(1 / alphas_cumprod - 1), rtol=1e-12)
    np.testing.assert_allclose(noise.log_sigmas, np.log(noise.sigmas), rtol=1e-12)
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
