"""Sampling options that all samplers, or some of them, refuse."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sd2rt.engines.bundle.sampler_config import SamplerName
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers import SamplingOptions, make_plan

from .cases import DISTILLED, EXPLODING, LOOKED_UP, NAMES, PRESERVING, config_of, noise_config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "none of num_inference_steps, timesteps and sigmas is set"),
        (
            {"num_inference_steps": 5, "timesteps": (3,)},
            "num_inference_steps and timesteps cannot be combined",
        ),
        ({"timesteps": (3,), "sigmas": (3, 0)}, "timesteps and sigmas cannot be combined"),
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
        ({"num_inference_steps": 5, "strength": 0}, "strength is 0: use a number above 0, up to 1"),
        ({"num_inference_steps": 5, "strength": -0.5}, "strength is -0.5"),
        ({"num_inference_steps": 5, "strength": 1.01}, "strength is 1.01"),
        ({"num_inference_steps": 5, "strength": math.nan}, "strength is nan"),
        ({"num_inference_steps": 5, "strength": math.inf}, "strength is inf"),
    ],
)
def test_options_that_no_sampler_could_use(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as refusal:
        SamplingOptions(**arguments)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            SamplingOptions(1, strength=0.5),
            "strength 0.5 leaves none of 1 step: use a strength of at least 1, or at least 2 steps",
        ),
        (
            SamplingOptions(3, strength=0.3),
            "strength 0.3 leaves none of 3 steps: use a strength of at least 0.334, or at least 4 steps",
        ),
        (SamplingOptions(50, strength=0.019), "of 50 steps: .* at least 0.02, or at least 53 steps"),
        (SamplingOptions(50, strength=1e-4), "at least 0.02$"),
        (SamplingOptions(50, strength=5e-324), "at least 0.02$"),
        (
            SamplingOptions(timesteps=(999, 500), strength=0.4),
            "of 2 steps: .* at least 0.5, or at least 3 steps",
        ),
        (SamplingOptions(sigmas=(9.0, 1.0, 0.0), strength=0.4), "of 2 steps: .* at least 0.5, or"),
    ],
)
def test_a_strength_that_leaves_no_step(options: SamplingOptions, message: str) -> None:
    for name in ("euler",) if options.num_inference_steps is None else NAMES:
        with pytest.raises(RequestError, match=message):
            make_plan(noise_config(), config_of(name), options)


@given(steps=st.integers(1, 1000), strength=st.floats(0, 1, exclude_min=True))
def test_the_remedy_for_a_strength_that_leaves_no_step_works(steps: int, strength: float) -> None:
    assume(int(steps * strength) == 0)
    with pytest.raises(RequestError) as refusal:
        make_plan(noise_config(), config_of("euler"), SamplingOptions(steps, strength=strength))
    actual = re.search(r"a strength of at least (\S+?)(?:, or at least (\d+) steps)?$", str(refusal.value))
    assert actual is not None
    assert int(steps * float(actual[1])) == 1
    if actual[2] is not None:
        assert int(int(actual[2]) * strength) == 1
        assert int((int(actual[2]) - 1) * strength) == 0


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (
            tuple(name for name in NAMES if name not in DISTILLED),
            SamplingOptions(1001),
            "num_inference_steps is 1001: the schedule has 1000",
        ),
        (
            tuple(name for name in NAMES if name != "pndm"),
            SamplingOptions(timesteps=(1000, 3)),
            "timesteps holds 1000",
        ),
        (
            ("ddim", "ddpm", *DISTILLED, *PRESERVING),
            SamplingOptions(timesteps=(10.5, 3)),
            "timesteps holds 10.5",
        ),
        (("pndm",), SamplingOptions(timesteps=(10, 3)), "pndm does not support custom timesteps"),
        (LOOKED_UP, SamplingOptions(sigmas=(10, 3)), "does not support custom sigmas"),
        (
            tuple(name for name in NAMES if name not in ("ddim", "tcd", "dpm-fast")),
            SamplingOptions(5, eta=0.5),
            "does not support eta",
        ),
        (("deis", "sa-solver"), SamplingOptions(sigmas=(10, 3, 0)), "cannot step to noise level 0"),
        (DISTILLED, SamplingOptions(51), "50 timesteps to choose 51 steps from"),
    ],
)
def test_options_that_a_sampler_does_not_support(
    names: tuple[SamplerName, ...], options: SamplingOptions, message: str
) -> None:
    for name in names:
        with pytest.raises(RequestError, match=message) as refusal:
            make_plan(noise_config(), config_of(name), options)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("options", [SamplingOptions(timesteps=(900, 3)), SamplingOptions(sigmas=(10, 3))])
@pytest.mark.parametrize("name", [*EXPLODING, *PRESERVING])
def test_a_rule_for_levels_and_a_list_of_them(name: SamplerName, options: SamplingOptions) -> None:
    with pytest.raises(
        RequestError, match="cannot be combined with the schedule karras: leave one of them out"
    ):
        make_plan(noise_config(), config_of(name, levels="karras"), options)


@pytest.mark.parametrize("name", ["dpmpp-2m", "dpmpp-2m-sde", "sa-solver"])
def test_a_late_start_after_the_timesteps_that_a_clipped_schedule_has(name: SamplerName) -> None:
    config = config_of(name, "trailing", lambda_min_clipped=-1.3)
    noise = noise_config(beta_schedule="linear")
    make_plan(noise, config, SamplingOptions(34, strength=0.9))
    with pytest.raises(
        RequestError, match=r"^lambda_min_clipped -1.3 leaves 22 of 34 steps, and strength 0.3 none"
    ):
        make_plan(noise, config, SamplingOptions(34, strength=0.3))
