"""Configuration of another sampler than the checkpoint's, compared with diffusers' from_config."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest

from sd2rt.engines.bundle.sampler_config import SamplerName, default_sampler
from sd2rt.engines.errors import RequestError
from sd2rt.export.checkpoints.scheduler_config import read_scheduler
from sd2rt.export.checkpoints.scheduler_table import SCHEDULERS
from sd2rt.runtime.samplers import sampler_config

from .cases import config_of

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")

PUBLISHED: dict[str, dict[str, Any]] = {
    "2-1": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    "2-1-base": {"_class_name": "PNDMScheduler", "prediction_type": "epsilon"},
    "2-1-unclip": {"_class_name": "PNDMScheduler", "prediction_type": "v_prediction"},
    "2-inpainting": {"_class_name": "PNDMScheduler"},
    "x4-upscaler": {
        "_class_name": "DDIMScheduler",
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "prediction_type": "v_prediction",
    },
    "sd-turbo": {
        "_class_name": "EulerDiscreteScheduler",
        "interpolation_type": "linear",
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "sigma_max": None,
        "sigma_min": None,
        "timestep_spacing": "trailing",
        "timestep_type": "discrete",
        "use_karras_sigmas": False,
    },
}
"""Scheduler configurations of the published checkpoints, on top of what they share."""

SHARED: dict[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 100,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "dpmpp-2m-sde"])
@pytest.mark.parametrize("checkpoint", PUBLISHED)
def test_another_sampler_is_diffusers_from_config(checkpoint: str, name: SamplerName) -> None:
    file = SHARED | PUBLISHED[checkpoint]
    base = getattr(diffusers, file["_class_name"]).from_config(file)
    other = getattr(diffusers, SCHEDULERS[name].name).from_config(base.config)
    expected = read_scheduler({**other.config, "_class_name": type(other).__name__}, "it")[1]
    actual = sampler_config(name, read_scheduler(file, "it")[1])
    differing = {
        field: (getattr(actual, field), value)
        for field, value in expected.model_dump().items()
        if getattr(actual, field) != value
    }
    # Only the single-step class has it off by default, and warns that most numbers of steps need it on.
    assert differing == ({"lower_order_final": (True, False)} if name == "dpmpp-2s" else {})


def test_a_sampler_without_a_base_has_its_defaults() -> None:
    for name in ("ddim", "unipc", "ipndm"):
        assert sampler_config(name) == default_sampler(name)


def test_a_schedule_overrides_and_an_unknown_name_is_refused() -> None:
    assert sampler_config("euler", config_of("pndm"), "trailing").spacing == "trailing"
    assert sampler_config("pndm", config_of("pndm", "linspace")).spacing == "linspace"
    with pytest.raises(
        RequestError, match=r"named 'eular': did you mean euler\? choose one of ddim, ddpm, pndm"
    ):
        sampler_config("eular")
