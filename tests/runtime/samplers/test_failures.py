"""Cases in which diffusers fails, and the result or error of our samplers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest

from sd2rt.engines.bundle.sampler_config import PredictionType, SamplerName
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers import SamplingOptions, make_plan

from .cases import config_of, noise_config
from .reference_schedulers import Draws, follow, reference

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
]


@dataclass(frozen=True)
class Failure:
    """A case in which diffusers fails; ``ours`` is "finite", or our error message."""

    reason: str
    name: str
    options: SamplingOptions
    raises: type[Exception] | str
    """An exception, "nan", or "wraps": diffusers reads timestep -1 from the other end of its table."""
    ours: str
    config: dict[str, Any] = field(default_factory=dict)
    prediction_type: PredictionType = "epsilon"
    noise: dict[str, Any] = field(default_factory=dict)


TO_LEVEL_0 = "set final_sigmas_type to sigma_min"
SHORTEST = (900.0, 500.0, 100.0, 0.0)

FAILURES = [
    *(
        Failure(
            "bh1 multiplies the last step's infinite length in lambda with zero", "unipc", SamplingOptions(steps),
            "nan", "finite", {"solver_type": "bh1"},
        )
        for steps in (1, 2, 3, 5)
    ),
    *(
        Failure(
            "the Runge-Kutta start needs four timesteps", "pndm", SamplingOptions(steps), ValueError,
            "at least 4 steps", {"skip_prk_steps": False},
        )
        for steps in (1, 2, 3)
    ),
    *(
        Failure(
            "the class does not support clean-image predictions", name, SamplingOptions(5), error, "finite",
            prediction_type="sample",
        )
        for name, error in (
            ("pndm", ValueError), ("euler-a", NotImplementedError), ("dpm2", NotImplementedError),
            ("dpm2-a", NotImplementedError), ("dpmpp-sde", NotImplementedError),
        )
    ),
    *(
        Failure(
            "a model is distilled with fewer timesteps", name, SamplingOptions(51), ValueError,
            "51 steps from: use at most 50",
        )
        for name in ("lcm", "tcd")
    ),
    *(
        Failure(
            "timestep -1 is the table's other end: pure noise", name, SamplingOptions(61), "wraps", "another spacing",
            {"spacing": "trailing"},
        )
        for name in ("ddim", "pndm", "ddpm")
    ),
    *(
        Failure(
            "the first timestep is beyond the table", name, SamplingOptions(1000), IndexError, "another spacing",
            {"spacing": "leading"},
        )
        for name in ("ddim", "pndm", "ddpm")
    ),
    *(
        Failure(
            "two steps have one noise level, and diffusers divides by their difference", "dpmpp-2m",
            SamplingOptions(steps), raises, "another schedule", {"spacing": spacing},
        )
        for spacing, steps, raises in (
            ("linspace", 1000, "nan"), ("leading", 1000, IndexError), ("leading", 999, "nan")
        )
    ),
    Failure(
        "Heun's form divides by the length of a last step that stays at its level", "dpmpp-2m",
        SamplingOptions(timesteps=SHORTEST), "nan", "finite",
        {"solver_type": "heun", "final_sigmas_type": "sigma_min", "lower_order_final": False},
    ),
    *(
        Failure(
            "the last step to noise level 0 needs x_0", name, SamplingOptions(5), ValueError,
            TO_LEVEL_0, {"algorithm_type": algorithm},
        )
        for name, algorithm in (
            ("dpmpp-2m", "dpmsolver"), ("dpmpp-2s", "dpmsolver"), ("dpmpp-2m-sde", "sde-dpmsolver")
        )
    ),
    Failure(
        "there is no such third order", "dpmpp-2m-sde", SamplingOptions(5), UnboundLocalError, "no third order",
        {"algorithm_type": "sde-dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min"},
    ),
    Failure(
        "UniPC on noises steps to noise level 0", "unipc", SamplingOptions(5), "nan", TO_LEVEL_0,
        {"predict_x0": False},
    ),
    Failure(
        "a last step of second order to noise level 0", "unipc", SamplingOptions(5), "nan", "set lower_order_final",
        {"lower_order_final": False},
    ),
    *(
        Failure(
            "zero terminal SNR: noise does not determine the image at the first timestep", name,
            SamplingOptions(5), "nan", "zero terminal SNR", config, noise={"rescale_betas_zero_snr": True},
        )
        for name, config in (
            ("ddim", {"spacing": "trailing"}), ("ddpm", {"spacing": "trailing"}), ("lcm", {}), ("tcd", {})
        )
    ),
    Failure(
        "the first two levels have one timestep, of which diffusers uses the second", "euler",
        SamplingOptions(sigmas=(20.0, 15.0, 3.0, 1.0, 0.0)), IndexError, "finite",
    ),
]  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES, ids=lambda each: f"{each.name}, {each.reason}")
def test_diffusers_fails(failure: Failure) -> None:
    noise, config = (
        noise_config(failure.prediction_type, **failure.noise),
        config_of(cast(SamplerName, failure.name), **failure.config),
    )
    draws = Draws.seeded(1100)
    if isinstance(failure.raises, str):
        with np.errstate(all="ignore"):
            actual = reference(noise, config, failure.options, draws)
        if failure.raises == "nan":
            assert not np.isfinite(actual.samples).all()
        else:
            assert actual.timesteps[-1] == -1
    else:
        with pytest.raises(failure.raises):
            reference(noise, config, failure.options, draws)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda each: f"{each.name}, {each.reason}")
def test_ours_is_finite_or_refused(failure: Failure) -> None:
    noise, config = (
        noise_config(failure.prediction_type, **failure.noise),
        config_of(cast(SamplerName, failure.name), **failure.config),
    )
    if failure.ours != "finite":
        with pytest.raises(RequestError, match=failure.ours) as refusal:
            make_plan(noise, config, failure.options)
        assert "\n" not in str(refusal.value)
        return
    plan = make_plan(noise, config, failure.options)
    actual = follow(plan, Draws.seeded(len(plan.steps)))
    assert np.isfinite(actual.samples).all()
    assert np.abs(actual.samples).max() < 1000


def test_a_last_step_of_no_length_leaves_the_sample() -> None:
    config = config_of("dpmpp-2m", final_sigmas_type="sigma_min", lower_order_final=False, solver_type="heun")
    plan = make_plan(noise_config(), config, SamplingOptions(timesteps=SHORTEST))
    actual = follow(plan, Draws.seeded(4))
    np.testing.assert_allclose(actual.samples[-1], actual.samples[-2], rtol=1e-12)


def test_pndm_reads_clean_images_as_their_noises() -> None:
    """A single step of first order gives the same sample for a clean image and for the noise that it implies.

    diffusers has no such class to compare with.
    """
    noises, clean = noise_config("epsilon"), noise_config("sample")
    config, options = config_of("pndm"), SamplingOptions(1)
    draws = Draws.seeded(1)
    step = make_plan(clean, config, options).steps[0]
    actual = follow(make_plan(clean, config, options), draws)
    alpha = 1 / (step.level**2 + 1) ** 0.5
    eps = (actual.start - alpha * draws.outputs[0]) / (alpha * step.level)
    same = follow(
        make_plan(noises, config, options), Draws(draws.start, eps[None], draws.noises, draws.image)
    )
    np.testing.assert_allclose(actual.samples, same.samples, rtol=1e-12)
