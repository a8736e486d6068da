"""Numbers from the ends of what a float holds: each is refused, or leads to a plan of finite numbers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sd2rt.engines.bundle.sampler_config import SAMPLER_OPTIONS, NoiseConfig, SamplerConfig, SamplerName
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers import SAMPLERS, SCHEDULES, SamplingOptions, make_plan, sampler_config

EXTREMES = [
    *(
        1e308,
        1e-308,
        1e-320,
        5e-324,
        1e38,
        1e-38,
        1e20,
        1e-20,
        1e8,
        1e-8,
        1e7,
        1e-7,
        1e4,
        1e-4,
        1.0,
        0.5,
        0.0,
        -1e308,
    ),
    *(
        float("nan"),
        float("inf"),
        10**400,
        2**63,
        2**31,
        -1,
        0,
        1,
        2,
        3,
        50,
        999,
        True,
        None,
        "",
        "karras",
        (),
        (3,),
    ),
    *([10**30], (-1,), "midpoint", "sigma_min", "bh1", "dpmsolver", "sde-dpmsolver++", "log_linear"),
]
SD2 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
many = settings(max_examples=60, deadline=None, derandomize=True, phases=[Phase.generate])


def noises() -> st.SearchStrategy[dict[str, Any]]:
    number = st.sampled_from([1e-320, 1e-9, 1e-8, 1e-4, 0.00085, 0.012, 0.5, 0.999, 1 - 1e-9, 1 - 1e-16])
    usual = st.just({"num_train_timesteps": 1000, **SD2})
    odd = st.fixed_dictionaries(
        {
            "num_train_timesteps": st.sampled_from([1, 2, 3, 10, 1000, 5000]),
            "beta_start": number,
            "beta_end": number,
            "beta_schedule": st.sampled_from(["linear", "scaled_linear"]),
            "prediction_type": st.sampled_from(["epsilon", "v_prediction", "sample"]),
            "rescale_betas_zero_snr": st.booleans(),
        }
    )
    return st.one_of(usual, usual, odd)


def levels() -> st.SearchStrategy[list[float]]:
    number = st.one_of(
        st.sampled_from([e for e in EXTREMES if type(e) is float]), st.floats(0, 1e9), st.floats()
    )
    return st.lists(number, min_size=1, max_size=6).map(lambda values: sorted(values, reverse=True))


@pytest.mark.parametrize("name", SAMPLERS)
@many
@given(data=st.data())
def test_any_numbers(name: SamplerName, data: st.DataObject) -> None:
    chosen = data.draw(
        st.lists(st.sampled_from([*SAMPLER_OPTIONS[name], "steps_offset"]), max_size=3, unique=True)
    )
    options = {option: data.draw(st.sampled_from(EXTREMES), label=option) for option in chosen}
    schedule = data.draw(st.sampled_from([None, None, *SCHEDULES]))
    start = data.draw(st.sampled_from(["steps", "steps", "sigmas", "sigmas", "timesteps"]))
    values = data.draw(st.integers(1, 60) if start == "steps" else levels())
    strength = data.draw(st.sampled_from([None, None, 1.0, 0.5, 1e-320]))
    eta = data.draw(st.sampled_from([0.0, 0.0, 1.0, 1e-320]))
    try:
        noise = NoiseConfig.model_validate(data.draw(noises()))
    except ValidationError:
        return
    with warnings.catch_warnings():
        # A warning would be printed beside the error, or beside a picture that is as it should be.
        warnings.simplefilter("error")
        try:
            config = sampler_config(name, schedule=schedule, options=options)
            plan = make_plan(
                noise,
                config,
                SamplingOptions(
                    num_inference_steps=values if isinstance(values, int) else None,
                    sigmas=tuple(values) if isinstance(values, list) and start == "sigmas" else None,
                    timesteps=tuple(values) if isinstance(values, list) and start == "timesteps" else None,
                    strength=strength,
                    eta=eta,
                ),
            )
        except RequestError:
            return
    for step in plan.steps:
        numbers = np.concatenate([step.weights, step.update.ravel(), [step.timestep]])
        assert np.isfinite(numbers.astype(np.float32)).all()
    assert np.isfinite([plan.init_scale, *(plan.start_noise or ())]).all()


@pytest.mark.parametrize("value", [1e308, 1e-320])
@pytest.mark.parametrize("name", ["euler", "unipc", "dpmpp-2m", "lms", "deis", "heun"])
def test_extreme_sigmas_are_refused(name: SamplerName, value: float) -> None:
    sigmas = tuple(sorted((value, 1.0, 0.0), reverse=True))
    with pytest.raises(RequestError, match=r"^sigmas holds .*: use 0, or numbers from 1e-08 to 1e\+08"):
        make_plan(
            NoiseConfig(num_train_timesteps=1000, **SD2),  # type: ignore[arg-type]
            sampler_config(name),
            SamplingOptions(sigmas=sigmas),
        )


@given(st.sampled_from([*SamplerConfig.model_fields]), st.sampled_from(EXTREMES))
def test_any_option_of_a_bundle(option: str, value: Any) -> None:
    data: dict[str, Any] = {"name": "euler", option: value}
    try:
        config = SamplerConfig.model_validate(data)
    except ValidationError:
        return
    assert config.model_dump_json()
