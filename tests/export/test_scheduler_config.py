from __future__ import annotations

from typing import Any

import diffusers
import pytest

from sd2rt.engines.errors import CheckpointError
from sd2rt.engines.sampling import NoiseConfig, SamplerConfig
from sd2rt.export.pipeline_configs import PipelineConfigs
from sd2rt.export.scheduler_config import read_scheduler
from sd2rt.export.variants import SUPPORTED

COMMON = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
PNDM = {"_class_name": "PNDMScheduler", **COMMON, "skip_prk_steps": True, "steps_offset": 1}
DDIM = {"_class_name": "DDIMScheduler", **COMMON, "clip_sample": False, "steps_offset": 1}
EULER = {"_class_name": "EulerDiscreteScheduler", **COMMON}
DPM = {"_class_name": "DPMSolverMultistepScheduler", **COMMON}


@pytest.mark.parametrize("row", SUPPORTED, ids=lambda row: row.name)
def test_the_published_schedulers(row: Any) -> None:
    noise, sampler = read_scheduler(PipelineConfigs.packaged(row.configs).scheduler, row.name)

    assert noise == NoiseConfig(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon" if row.kind == "base" else "v_prediction",
    )
    assert sampler == SamplerConfig(
        name="pndm" if row.kind == "base" else "ddim",
        spacing="leading",
        steps_offset=1,
        set_alpha_to_one=False,
        final_sigma="zero",
        lower_order_final=True,
        solver_type="midpoint",
    )


def test_what_a_file_leaves_out_is_what_diffusers_assumes() -> None:
    noise, ddim = read_scheduler({"_class_name": "DDIMScheduler", "clip_sample": False}, "it")
    assert (noise.beta_start, noise.beta_end, noise.beta_schedule) == (0.0001, 0.02, "linear")
    assert noise.prediction_type == "epsilon"
    assert (ddim.spacing, ddim.set_alpha_to_one) == ("leading", True)

    assert read_scheduler(EULER, "it")[1].spacing == "linspace"
    assert read_scheduler(PNDM, "it")[1].set_alpha_to_one is False


def test_every_option_reaches_its_field() -> None:
    _, dpm = read_scheduler(
        {
            **DPM,
            "timestep_spacing": "trailing",
            "final_sigmas_type": "sigma_min",
            "lower_order_final": False,
            "solver_type": "heun",
        },
        "it",
    )
    assert (dpm.name, dpm.spacing, dpm.final_sigma) == ("dpmpp-2m", "trailing", "sigma_min")
    assert (dpm.lower_order_final, dpm.solver_type) == (False, "heun")

    _, euler = read_scheduler({**EULER, "timestep_spacing": "trailing"}, "it")
    assert (euler.name, euler.spacing) == ("euler", "trailing")

    _, ddim = read_scheduler({**DDIM, "set_alpha_to_one": True}, "it")
    assert ddim.set_alpha_to_one is True


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler")
@pytest.mark.parametrize("config", [DDIM, EULER, DPM, PNDM], ids=lambda config: config["_class_name"])
@pytest.mark.parametrize("offset", [None, 0, 1])
def test_the_steps_offset_is_the_one_that_the_pipeline_enforces(
    config: dict[str, Any], offset: int | None
) -> None:
    given = {key: value for key, value in config.items() if key != "steps_offset"}
    given |= {} if offset is None else {"steps_offset": offset}
    scheduler = getattr(diffusers, config["_class_name"]).from_config(given)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=None,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )

    assert read_scheduler(given, "it")[1].steps_offset == pipeline.scheduler.config.steps_offset


def test_keys_of_another_class_are_ignored_as_diffusers_ignores_them() -> None:
    # The published DDIM files carry PNDM's skip_prk_steps, SD-Turbo's Euler file carries DDIM's clip_sample.
    assert read_scheduler({**DDIM, "skip_prk_steps": False}, "it")[1].name == "ddim"
    assert read_scheduler({**EULER, "clip_sample": True, "sample_max_value": 1.0}, "it")[1].name == "euler"


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        (DDIM, "clip_sample", True),
        (DDIM, "thresholding", True),
        (DDIM, "rescale_betas_zero_snr", True),
        (DDIM, "trained_betas", [0.1, 0.2]),
        (DDIM, "beta_schedule", "squaredcos_cap_v2"),
        (DDIM, "prediction_type", "sample"),
        (DDIM, "timestep_spacing", "uniform"),
        (DDIM, "num_train_timesteps", 0),
        (PNDM, "skip_prk_steps", False),
        (PNDM, "beta_start", "small"),
        (EULER, "use_karras_sigmas", True),
        (EULER, "use_exponential_sigmas", True),
        (EULER, "use_beta_sigmas", True),
        (EULER, "rescale_betas_zero_snr", True),
        (EULER, "interpolation_type", "log_linear"),
        (EULER, "timestep_type", "continuous"),
        (EULER, "sigma_min", 0.1),
        (EULER, "sigma_max", 10.0),
        (DPM, "use_karras_sigmas", True),
        (DPM, "use_lu_lambdas", True),
        (DPM, "use_flow_sigmas", True),
        (DPM, "algorithm_type", "sde-dpmsolver++"),
        (DPM, "solver_order", 3),
        (DPM, "solver_type", "logrho"),
        (DPM, "euler_at_final", True),
        (DPM, "lambda_min_clipped", -5.1),
        (DPM, "variance_type", "learned"),
        (DPM, "thresholding", True),
        (DPM, "prediction_type", "flow_prediction"),
        (DPM, "final_sigmas_type", "other"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_key(config: dict[str, Any], key: str, value: object) -> None:
    read_scheduler(config, "it")
    with pytest.raises(CheckpointError, match=key) as refused:
        read_scheduler({**config, key: value}, "it")
    assert repr(value) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "scheduler_config.json" in str(refused.value)


def test_defaults_that_cannot_be_honoured_are_refused_too() -> None:
    # diffusers clips and takes Runge-Kutta steps unless the file says otherwise.
    with pytest.raises(CheckpointError, match="clip_sample = True"):
        read_scheduler({"_class_name": "DDIMScheduler", **COMMON}, "it")
    with pytest.raises(CheckpointError, match="skip_prk_steps = False"):
        read_scheduler({"_class_name": "PNDMScheduler", **COMMON}, "it")


@pytest.mark.parametrize("name", ["LMSDiscreteScheduler", "DDPMScheduler", None, 3])
def test_an_unknown_class_is_named(name: object) -> None:
    with pytest.raises(CheckpointError, match=f"{name}.*PNDMScheduler, DDIMScheduler"):
        read_scheduler({"_class_name": name, **COMMON}, "the folder")
