"""ComfyUI's schedulers, written from their formulas, against the levels of the grid that its recipes choose."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import beta as beta_distribution

from sd2rt.runtime.metadata.imported import ImportedSettings
from sd2rt.runtime.metadata.programs.k_diffusion_names import add_sampler, add_start
from sd2rt.runtime.samplers import SamplingOptions
from sd2rt.runtime.samplers.a1111.level_lists import level_list
from sd2rt.runtime.samplers.a1111.model_levels import ModelLevels
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule

from .files import NOISE_CONFIG, model_sigmas

SIGMAS = model_sigmas()


def between(timesteps: Any) -> NDArray[np.float64]:
    """Levels of fractional timesteps: log(sigma) is interpolated."""
    levels: NDArray[np.float64] = np.exp(np.interp(timesteps, np.arange(1000), np.log(SIGMAS)))
    return levels


def normal(steps: int) -> list[float]:
    return [*between(np.linspace(999, 0, steps)), 0]


def sgm_uniform(steps: int) -> list[float]:
    return [*between(np.linspace(999, 0, steps + 1)[:-1]), 0]


def simple(steps: int) -> list[float]:
    return [*(SIGMAS[-(1 + int(step * 1000 / steps))] for step in range(steps)), 0]


def ddim_uniform(steps: int) -> list[float]:
    stride = max(1000 // steps, 1)
    return [*SIGMAS[1::stride][::-1], 0]


def karras(steps: int) -> list[float]:
    low, high = SIGMAS[0] ** (1 / 7), SIGMAS[-1] ** (1 / 7)
    return [*(high + np.linspace(0, 1, steps) * (low - high)) ** 7, 0]


def exponential(steps: int) -> list[float]:
    return [*np.exp(np.linspace(math.log(SIGMAS[-1]), math.log(SIGMAS[0]), steps)), 0]


def beta(steps: int) -> list[float]:
    quantiles = beta_distribution.ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.6, 0.6)
    whole = np.rint(quantiles * 999).astype(int)
    return [*(SIGMAS[timestep] for timestep in dict.fromkeys(whole.tolist())), 0]


def kl_optimal(steps: int) -> list[float]:
    share = np.arange(steps) / (steps - 1)
    return [*np.tan(share * math.atan(SIGMAS[0]) + (1 - share) * math.atan(SIGMAS[-1])), 0]


def chosen(sampler: str, scheduler: str, steps: int) -> tuple[list[float], list[str]]:
    settings = ImportedSettings("ComfyUI")
    add_sampler(settings, sampler, scheduler)
    add_start(settings, steps, 1.0)
    fields = settings.fields
    options = SamplingOptions(num_inference_steps=fields["num_inference_steps"], a1111=fields["schedule"])
    return level_list(
        fields["sampler"], ModelLevels(NoiseSchedule(NOISE_CONFIG)), options
    ).levels, settings.notes


@pytest.mark.parametrize("steps", [2, 8, 17, 20, 30])
@pytest.mark.parametrize("scheduler", [normal, sgm_uniform, simple, ddim_uniform, karras, exponential])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "dpmpp_sde", "ddim"])
def test_levels_are_its_own(sampler: str, scheduler: Any, steps: int) -> None:
    levels, notes = chosen(sampler, scheduler.__name__, steps)
    np.testing.assert_allclose(levels, scheduler(steps), rtol=3e-5)
    assert notes == []


@pytest.mark.parametrize("sampler", ["dpm_2", "dpm_2_ancestral"])
def test_levels_without_the_next_to_last(sampler: str) -> None:
    levels, _ = chosen(sampler, "karras", 20)
    whole = karras(21)
    np.testing.assert_allclose(levels, [*whole[:-2], 0], rtol=3e-5)


@pytest.mark.parametrize("scheduler", [beta, kl_optimal])
@pytest.mark.parametrize("steps", [8, 20, 30])
def test_levels_that_differ_are_noted(scheduler: Any, steps: int) -> None:
    levels, notes = chosen("euler", scheduler.__name__, steps)
    expected = scheduler(steps)
    assert len(levels) == len(expected)
    assert not np.allclose(levels, expected, rtol=1e-3)
    assert [note.split(":")[0] for note in notes] == [f"Scheduler {scheduler.__name__}"]


@pytest.mark.parametrize(
    ("name", "sampler", "options"),
    [
        ("dpmpp_2m_sde_gpu", "dpmpp-2m-sde", None),
        ("dpmpp_2m_sde_heun", "dpmpp-2m-sde", {"solver_type": "heun"}),
        ("uni_pc_bh2", "unipc", {"solver_type": "bh2"}),
        ("deis", "deis", None),
    ],
)
def test_other_samplers(name: str, sampler: str, options: object) -> None:
    settings = ImportedSettings("ComfyUI")
    add_sampler(settings, name, "karras")
    assert settings.fields["sampler"] == sampler
    assert settings.fields.get("sampler_options") == options
