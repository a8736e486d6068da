from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest

from sd2rt.engines.errors import CheckpointError
from sd2rt.engines.kinds import Variant
from sd2rt.engines.sampling import NoiseConfig, SamplerConfig
from sd2rt.export.pipeline_configs import PipelineConfigs
from sd2rt.export.scheduler_config import read_noise, read_scheduler
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
    noise, sampler = read_scheduler(PipelineConfigs.packaged(row.configs).scheduler, row.name, row.kind)

    assert noise == NoiseConfig(
        num_train_timesteps=1000,
        beta_start=0.0001 if row.kind == "upscaler" else 0.00085,
        beta_end=0.02 if row.kind == "upscaler" else 0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction" if row.kind in ("v", "upscaler") else "epsilon",
    )
    assert sampler == SamplerConfig(
        name="ddim" if row.kind in ("v", "upscaler") else "euler" if row.kind == "turbo" else "pndm",
        spacing="trailing" if row.kind == "turbo" else "leading",
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


PIPELINES: dict[Variant, Any] = {
    "base": diffusers.StableDiffusionPipeline,
    "inpainting": diffusers.StableDiffusionInpaintPipeline,
    "depth": diffusers.StableDiffusionDepth2ImgPipeline,
    "upscaler": diffusers.StableDiffusionUpscalePipeline,
}


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler")
@pytest.mark.parametrize("config", [DDIM, EULER, DPM, PNDM], ids=lambda config: config["_class_name"])
@pytest.mark.parametrize("offset", [None, 0, 1])
@pytest.mark.parametrize(("kind", "pipeline_class"), PIPELINES.items())
def test_the_steps_offset_is_the_one_that_the_pipeline_has(
    config: dict[str, Any], offset: int | None, kind: Variant, pipeline_class: Any
) -> None:
    given = {key: value for key, value in config.items() if key != "steps_offset"}
    given |= {} if offset is None else {"steps_offset": offset}
    scheduler = getattr(diffusers, config["_class_name"]).from_config(given)
    parameters = inspect.signature(pipeline_class.__init__).parameters
    components = {name: None for name in parameters if name != "self"} | {"scheduler": scheduler}
    if "requires_safety_checker" in components:
        components["requires_safety_checker"] = False
    pipeline = pipeline_class(**components)

    assert read_scheduler(given, "it", kind)[1].steps_offset == pipeline.scheduler.config.get(
        "steps_offset", 0
    )


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


def test_noise_alone_asks_for_nothing_else() -> None:
    published = PipelineConfigs.packaged("stable-diffusion-x4-upscaler").low_res_scheduler
    assert published is not None
    assert published["clip_sample"] is True
    assert read_noise(published, "it") == NoiseConfig(
        num_train_timesteps=1000,
        beta_start=0.0001,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
    )
    assert read_noise({"_class_name": "DDPMScheduler"}, "it").beta_schedule == "linear"
    assert read_noise({**DDIM, "clip_sample": True}, "it") == read_scheduler(DDIM, "it")[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trained_betas", [0.1]),
        ("rescale_betas_zero_snr", True),
        ("beta_schedule", "squaredcos_cap_v2"),
        ("beta_end", 2.0),
        ("_class_name", "LMSDiscreteScheduler"),
    ],
)
def test_noise_that_cannot_be_honoured_is_refused_by_key(key: str, value: object) -> None:
    match = "LMSDiscreteScheduler.*DDPMScheduler" if key == "_class_name" else f"DDPMScheduler has {key} = "
    with pytest.raises(CheckpointError, match=match) as refused:
        read_noise({"_class_name": "DDPMScheduler", key: value}, "it")
    assert "\n" not in str(refused.value)
