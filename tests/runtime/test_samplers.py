from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sd2rt.engines.errors import RequestError
from sd2rt.engines.sampling import (
    STATE_SLOTS,
    NoiseConfig,
    PredictionType,
    SamplerConfig,
    SamplerName,
    Spacing,
)
from sd2rt.runtime.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers import SAMPLERS, SamplingOptions, make_plan, sampler_config

from .reference_schedulers import (
    SCHEDULERS,
    Draws,
    Trajectory,
    deviation,
    float64_tables,
    follow,
    make_scheduler,
    reference,
    relative_error,
)

# diffusers turns torch tensors into arrays in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

BOUND = 1e-9
"""The design asks for 1e-5 of the tables; both sides being float64, anything near it would be a mistake."""

NAMES: tuple[SamplerName, ...] = get_args(SamplerName)
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)
PREDICTIONS: tuple[PredictionType, ...] = get_args(PredictionType)
STEPS = (1, 2, 3, 5, 10, 20, 50, 100)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def noise_config(prediction_type: PredictionType = "epsilon", **changes: Any) -> NoiseConfig:
    sd2: dict[str, Any] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction_type,
    }
    return NoiseConfig(**sd2 | changes)


def config_of(name: SamplerName, spacing: Spacing | None = None, **changes: Any) -> SamplerConfig:
    return SamplerConfig(**sampler_config(name, spacing=spacing).model_dump() | changes)


def assert_close(found: Trajectory, expected: Trajectory) -> None:
    np.testing.assert_allclose(found.timesteps, expected.timesteps, rtol=1e-9, atol=1e-9)
    assert np.isfinite(found.samples).all()
    assert relative_error(found.samples, expected.samples) <= BOUND
    assert relative_error(found.inputs, expected.inputs) <= BOUND


def assert_like_diffusers(noise: NoiseConfig, config: SamplerConfig, options: SamplingOptions) -> None:
    plan = make_plan(noise, config, options)
    draws = Draws.seeded(len(plan.steps))
    assert_close(follow(plan, draws), reference(noise, config, options, draws))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_table_gives_every_step_of_diffusers(
    name: SamplerName, prediction_type: PredictionType, spacing: Spacing, steps: int
) -> None:
    assert_like_diffusers(noise_config(prediction_type), config_of(name, spacing), SamplingOptions(steps))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("set_alpha_to_one", [False, True])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_fresh_noise(
    eta: float, set_alpha_to_one: bool, prediction_type: PredictionType, spacing: Spacing, steps: int
) -> None:
    config = config_of("ddim", spacing, set_alpha_to_one=set_alpha_to_one)
    assert_like_diffusers(noise_config(prediction_type), config, SamplingOptions(steps, eta=eta))


@pytest.mark.parametrize("steps", [1, 2, 3, 14, 15, 30])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("lower_order_final", [False, True])
@pytest.mark.parametrize("final_sigma", ["zero", "sigma_min"])
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_forms_of_dpmpp_2m(
    prediction_type: PredictionType, final_sigma: str, lower_order_final: bool, solver_type: str, steps: int
) -> None:
    config = config_of(
        "dpmpp-2m", final_sigma=final_sigma, lower_order_final=lower_order_final, solver_type=solver_type
    )
    assert_like_diffusers(noise_config(prediction_type), config, SamplingOptions(steps))


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_custom_timesteps_and_sigmas_of_euler(spacing: Spacing, prediction_type: PredictionType) -> None:
    noise, config = noise_config(prediction_type), config_of("euler", spacing)
    assert_like_diffusers(noise, config, SamplingOptions(timesteps=(999, 750.5, 400, 33, 0)))
    assert_like_diffusers(noise, config, SamplingOptions(timesteps=(601,)))
    assert_like_diffusers(noise, config, SamplingOptions(sigmas=(14.6, 7.0, 2.5, 0.6, 0.03, 0.0)))
    assert_like_diffusers(noise, config, SamplingOptions(sigmas=(80.0, 3.0, 0.001, 0.0005)))


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("final_sigma", ["zero", "sigma_min"])
def test_custom_timesteps_of_dpmpp_2m(
    final_sigma: str, solver_type: str, prediction_type: PredictionType
) -> None:
    config = config_of("dpmpp-2m", final_sigma=final_sigma, solver_type=solver_type)
    for timesteps in ((999, 750, 400, 33, 2), (601,), tuple(range(900, 100, -37))):
        assert_like_diffusers(noise_config(prediction_type), config, SamplingOptions(timesteps=timesteps))


class Stride:
    """Stands for a number of steps, of which diffusers' DDIM only asks how far one step goes."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __rfloordiv__(self, total: int) -> int:
        return self.length


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("set_alpha_to_one", [False, True])
def test_custom_timesteps_of_ddim_go_from_each_to_the_next(
    set_alpha_to_one: bool, eta: float, prediction_type: PredictionType
) -> None:
    noise, config = noise_config(prediction_type), config_of("ddim", set_alpha_to_one=set_alpha_to_one)
    timesteps = (999, 750, 400, 33, 2)
    draws = Draws.seeded(len(timesteps))

    scheduler = make_scheduler(noise, config)
    samples = []
    with float64_tables(scheduler):
        sample = torch.from_numpy(draws.start)
        for i, (timestep, target) in enumerate(zip(timesteps, (*timesteps[1:], -1), strict=True)):
            scheduler.num_inference_steps = Stride(timestep - target)
            output, fresh = torch.from_numpy(draws.outputs[i]), torch.from_numpy(draws.noises[i])
            sample = scheduler.step(output, timestep, sample, eta=eta, variance_noise=fresh).prev_sample
            samples.append(sample.numpy())

    found = follow(make_plan(noise, config, SamplingOptions(timesteps=timesteps, eta=eta)), draws)
    assert relative_error(found.samples, np.array(samples)) <= BOUND


def test_custom_timesteps_that_are_a_spacings_give_its_plan() -> None:
    noise = noise_config()
    for name in ("ddim", "dpmpp-2m", "euler"):
        config = config_of(name, "trailing")
        spaced = make_plan(noise, config, SamplingOptions(20))
        listed = make_plan(noise, config, SamplingOptions(timesteps=tuple(s.timestep for s in spaced.steps)))
        for ours, theirs in zip(listed.steps, spaced.steps, strict=True):
            np.testing.assert_array_equal(ours.update, theirs.update)


configurations = st.builds(
    SamplerConfig,
    name=st.sampled_from(NAMES),
    spacing=st.sampled_from(SPACINGS),
    steps_offset=st.integers(0, 3),
    set_alpha_to_one=st.booleans(),
    final_sigma=st.sampled_from(["zero", "sigma_min"]),
    lower_order_final=st.booleans(),
    solver_type=st.sampled_from(["midpoint", "heun"]),
)
noises = st.builds(
    noise_config,
    st.sampled_from(PREDICTIONS),
    num_train_timesteps=st.sampled_from([50, 1000]),
    beta_schedule=st.sampled_from(["linear", "scaled_linear"]),
    beta_end=st.floats(0.005, 0.03),
)


def diffusers_is_broken(noise: NoiseConfig, config: SamplerConfig, options: SamplingOptions) -> bool:
    """Whether diffusers raises, computes NaN or inf, or reads its tables at timestep -1: from their other end."""
    try:
        found = reference(noise, config, options, Draws.seeded(noise.num_train_timesteps + 1))
    except IndexError:
        return True
    wraps = config.name in ("ddim", "pndm") and bool((found.timesteps < 0).any())
    return wraps or not np.isfinite(found.samples).all()


@settings(max_examples=200, deadline=None)
@given(noise=noises, config=configurations, steps=st.integers(1, 120), eta=st.sampled_from([0.0, 0.5, 1.0]))
def test_any_options(noise: NoiseConfig, config: SamplerConfig, steps: int, eta: float) -> None:
    assume(steps <= noise.num_train_timesteps)
    options = SamplingOptions(steps, eta=eta if config.name == "ddim" else 0.0)
    try:
        plan = make_plan(noise, config, options)
    except RequestError:
        assert diffusers_is_broken(noise, config, options)
        return
    draws = Draws.seeded(len(plan.steps))
    found, expected = follow(plan, draws), reference(noise, config, options, draws)
    assert np.isfinite(found.samples).all()
    if np.isfinite(expected.samples).all():
        assert_close(found, expected)
    else:
        # diffusers' Heun form divides by a step of length zero, at the last step.
        assert config.solver_type == "heun"
        assert found.timesteps[-1] <= 0
        np.testing.assert_allclose(found.samples[-1], found.samples[-2], rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    prediction_type=st.sampled_from(PREDICTIONS),
    config=configurations.filter(lambda config: config.name in ("euler", "dpmpp-2m")),
    timesteps=st.sets(st.integers(1, 999), min_size=1, max_size=30),
)
def test_any_custom_timesteps(
    prediction_type: PredictionType, config: SamplerConfig, timesteps: set[int]
) -> None:
    options = SamplingOptions(timesteps=tuple(sorted(timesteps, reverse=True)))
    assert_like_diffusers(noise_config(prediction_type), config, options)


@pytest.mark.parametrize(
    ("name", "spacing", "steps"),
    [
        ("ddim", "leading", 1000),
        ("pndm", "leading", 1000),
        ("ddim", "trailing", 61),
        ("pndm", "trailing", 61),
        ("dpmpp-2m", "linspace", 1000),
        ("dpmpp-2m", "leading", 1000),
        ("dpmpp-2m", "leading", 999),
    ],
)
def test_spacings_that_do_not_work_in_diffusers_are_refused(
    name: SamplerName, spacing: Spacing, steps: int
) -> None:
    noise, config, options = noise_config(), config_of(name, spacing), SamplingOptions(steps)
    assert diffusers_is_broken(noise, config, options)
    with pytest.raises(RequestError, match="another spacing"):
        make_plan(noise, config, options)


@pytest.mark.parametrize(
    ("name", "spacing", "steps"),
    [
        ("euler", "leading", 1000),
        ("euler", "trailing", 61),
        ("euler", "trailing", 998),
        ("euler", "linspace", 1000),
        ("dpmpp-2m", "trailing", 61),
        ("dpmpp-2m", "trailing", 998),
        ("dpmpp-2m", "trailing", 1000),
        ("dpmpp-2m", "leading", 998),
        ("ddim", "leading", 999),
        ("ddim", "trailing", 1000),
        ("pndm", "linspace", 1000),
    ],
)
def test_odd_spacings_that_work_in_diffusers_are_followed(
    name: SamplerName, spacing: Spacing, steps: int
) -> None:
    assert_like_diffusers(noise_config(), config_of(name, spacing), SamplingOptions(steps))


def test_a_last_step_of_no_length_leaves_the_sample() -> None:
    config = config_of("dpmpp-2m", final_sigma="sigma_min", lower_order_final=False, solver_type="heun")
    options = SamplingOptions(timesteps=(900, 500, 100, 0))
    draws = Draws.seeded(4)
    assert np.isnan(reference(noise_config(), config, options, draws).samples[-1]).all()
    found = follow(make_plan(noise_config(), config, options), draws)
    np.testing.assert_allclose(found.samples[-1], found.samples[-2], rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "none of them given"),
        ({"num_inference_steps": 5, "timesteps": (3,)}, "num_inference_steps and timesteps given"),
        ({"timesteps": (3,), "sigmas": (3, 0)}, "timesteps and sigmas given"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": -3}, "num_inference_steps is -3"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"num_inference_steps": math.nan}, "num_inference_steps is nan"),
        ({"num_inference_steps": True}, "num_inference_steps is True"),
        ({"timesteps": ()}, "timesteps has 0 values"),
        ({"timesteps": (1, 2)}, "timesteps goes from 1 to 2"),
        ({"timesteps": (2, 2)}, "timesteps goes from 2 to 2"),
        ({"timesteps": (2, -1)}, "timesteps holds -1"),
        ({"timesteps": (math.nan,)}, "timesteps holds nan"),
        ({"sigmas": (1.0,)}, "sigmas has 1 values"),
        ({"sigmas": (1.0, 1.0)}, "sigmas goes from 1.0 to 1.0"),
        ({"sigmas": (1.0, math.nan, 0.0)}, "sigmas holds nan"),
        ({"sigmas": (math.inf, 0.0)}, "sigmas holds inf"),
        ({"sigmas": (1.0, 0.0, 0.0)}, "sigmas goes from 0.0 to 0.0"),
        ({"num_inference_steps": 5, "eta": -0.1}, "eta is -0.1"),
        ({"num_inference_steps": 5, "eta": 1.5}, "eta is 1.5"),
        ({"num_inference_steps": 5, "eta": math.nan}, "eta is nan"),
    ],
)
def test_options_that_no_sampler_could_use(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as refusal:
        SamplingOptions(**arguments)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (NAMES, SamplingOptions(1001), "num_inference_steps is 1001: the schedule has 1000"),
        (("ddim", "euler", "dpmpp-2m"), SamplingOptions(timesteps=(1000, 3)), "timesteps holds 1000"),
        (("ddim", "dpmpp-2m"), SamplingOptions(timesteps=(10.5, 3)), "timesteps holds 10.5"),
        (("pndm",), SamplingOptions(timesteps=(10, 3)), "pndm takes no custom timesteps, got 2"),
        (("ddim", "pndm", "dpmpp-2m"), SamplingOptions(sigmas=(10, 3)), "takes no sigmas, got 2"),
        (("pndm", "euler", "dpmpp-2m"), SamplingOptions(5, eta=0.5), "adds no noise, got eta 0.5"),
    ],
)
def test_options_that_a_sampler_does_not_support(
    names: tuple[SamplerName, ...], options: SamplingOptions, message: str
) -> None:
    for name in names:
        with pytest.raises(RequestError, match=message) as refusal:
            make_plan(noise_config(), config_of(name), options)
        assert "\n" not in str(refusal.value)


PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "2-1": ("DDIMScheduler", {"prediction_type": "v_prediction"}),
    "2-1-base": ("PNDMScheduler", {"prediction_type": "epsilon"}),
    "2-1-unclip": ("PNDMScheduler", {"prediction_type": "v_prediction"}),
    "2-inpainting": ("PNDMScheduler", {}),
    "x4-upscaler": (
        "DDIMScheduler",
        {"beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "v_prediction"},
    ),
    "sd-turbo": (
        "EulerDiscreteScheduler",
        {
            "interpolation_type": "linear",
            "prediction_type": "epsilon",
            "sample_max_value": 1.0,
            "sigma_max": None,
            "sigma_min": None,
            "timestep_spacing": "trailing",
            "timestep_type": "discrete",
            "use_karras_sigmas": False,
        },
    ),
}
"""The scheduler configurations of the published checkpoints, over what all of them state."""

SHARED: dict[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}

NAME_OF = {scheduler.__name__: name for name, scheduler in SCHEDULERS.items()}


def stated(name: SamplerName, scheduler: Any) -> SamplerConfig:
    """A diffusers scheduler's configuration as ours; options that its class does not have are as it was given
    them, else as the classes that do have them default."""
    config = scheduler.config
    return SamplerConfig(
        name=name,
        spacing=config["timestep_spacing"],
        steps_offset=config["steps_offset"],
        set_alpha_to_one=config["set_alpha_to_one"],
        final_sigma=config.get("final_sigmas_type", "zero"),
        lower_order_final=config.get("lower_order_final", True),
        solver_type=config.get("solver_type", "midpoint"),
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("checkpoint", PUBLISHED)
def test_sampler_config_is_diffusers_from_config(checkpoint: str, name: SamplerName) -> None:
    class_name, values = PUBLISHED[checkpoint]
    own = SCHEDULERS[NAME_OF[class_name]].from_config({"_class_name": class_name} | SHARED | values)
    other = SCHEDULERS[name].from_config(own.config)
    assert sampler_config(name, stated(NAME_OF[class_name], own)) == stated(name, other)
    assert other.config["skip_prk_steps"] is True
    assert other.config.get("clip_sample", False) is False


@pytest.mark.parametrize("name", NAMES)
def test_sampler_config_without_a_base_is_that_of_the_published_checkpoints(name: SamplerName) -> None:
    own = SCHEDULERS["pndm"].from_config({"_class_name": "PNDMScheduler"} | SHARED)
    assert sampler_config(name) == stated(name, SCHEDULERS[name].from_config(own.config))


def test_sampler_config_takes_a_spacing_and_refuses_an_unknown_name() -> None:
    assert sampler_config("euler", config_of("pndm"), spacing="trailing").spacing == "trailing"
    assert sampler_config("pndm", config_of("pndm", "linspace")).spacing == "linspace"
    with pytest.raises(RequestError, match=r"no sampler is named 'eular': choose one of ddim, pndm, euler"):
        sampler_config("eular")


def test_every_sampler_has_an_entry() -> None:
    assert tuple(SAMPLERS) == NAMES
    assert tuple(SCHEDULERS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_unused_slots_stay_zero(name: SamplerName) -> None:
    used = {"ddim": 1, "euler": 1, "dpmpp-2m": 2, "pndm": STATE_SLOTS}[name]
    for step in make_plan(noise_config(), config_of(name), SamplingOptions(20)).steps:
        assert not step.update[used:].any()
        assert not step.update[:, used:STATE_SLOTS].any()
        assert not step.weights[1:].any()
        assert step.update.dtype == step.weights.dtype == np.float64


def test_only_ddim_with_eta_draws_noise() -> None:
    for name in NAMES:
        plan = make_plan(noise_config(), config_of(name), SamplingOptions(5))
        assert not any(step.draws_noise for step in plan.steps)
    plan = make_plan(noise_config(), config_of("ddim"), SamplingOptions(5, eta=0.3))
    assert all(step.draws_noise for step in plan.steps)


def test_a_plan_is_remembered_and_read_only() -> None:
    plan = make_plan(noise_config(), config_of("pndm"), SamplingOptions(7))
    assert make_plan(noise_config(), config_of("pndm"), SamplingOptions(7)) is plan
    assert len(plan.steps) == 8
    with pytest.raises(ValueError, match="read-only"):
        plan.steps[0].update[0, 0] = 1


def test_the_start_of_euler_is_as_noisy_as_its_spacing_says() -> None:
    largest = NoiseSchedule(noise_config()).sigmas[999]
    for spacing in ("linspace", "trailing"):
        plan = make_plan(noise_config(), config_of("euler", spacing), SamplingOptions(10))
        assert plan.init_scale == pytest.approx(largest)
    leading = make_plan(noise_config(), config_of("euler", "leading"), SamplingOptions(10))
    sigma = NoiseSchedule(noise_config()).sigmas[901]
    assert leading.init_scale == pytest.approx(math.sqrt(sigma**2 + 1))


def test_the_report_of_deviations_names_both_sides() -> None:
    found = deviation(noise_config(), config_of("dpmpp-2m"), SamplingOptions(20))
    assert found.table <= BOUND
    assert BOUND < found.diffusers_float32 < 1e-3
