from __future__ import annotations

import inspect
from typing import Any, get_args

import diffusers
import pytest

from sd2rt.engines.bundle.model_kinds import ModelKind
from sd2rt.engines.bundle.sampler_config import (
    SAMPLER_OPTIONS,
    NoiseConfig,
    SamplerConfig,
    SamplerName,
    Spacing,
    default_sampler,
)
from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints.pipeline_configs import PipelineConfigs
from sd2rt.export.checkpoints.scheduler_config import read_noise, read_scheduler
from sd2rt.export.checkpoints.scheduler_table import SCHEDULERS
from sd2rt.export.checkpoints.variants import SUPPORTED
from sd2rt.export.reference import reference_scheduler

COMMON: dict[str, Any] = {
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
    name: SamplerName = (
        "ddim" if row.kind in ("v", "upscaler") else "euler" if row.kind == "turbo" else "pndm"
    )
    assert sampler == default_sampler(name, spacing="trailing" if row.kind == "turbo" else "leading")


def test_what_a_file_leaves_out_is_what_diffusers_assumes() -> None:
    noise, ddim = read_scheduler({"_class_name": "DDIMScheduler", "clip_sample": False}, "it")
    assert (noise.beta_start, noise.beta_end, noise.beta_schedule) == (0.0001, 0.02, "linear")
    assert noise.prediction_type == "epsilon"
    assert (ddim.spacing, ddim.set_alpha_to_one) == ("leading", True)

    assert read_scheduler(EULER, "it")[1].spacing == "linspace"
    assert read_scheduler(PNDM, "it")[1].set_alpha_to_one is False


Change = tuple[str, Any, str, Any]
"""A key and its value in a file, and the field and its value in SamplerConfig."""

CLASSES: dict[str, tuple[SamplerName, dict[str, Any], list[Change]]] = {
    "DDIMScheduler": (
        "ddim",
        {"clip_sample": False},
        [("set_alpha_to_one", False, "set_alpha_to_one", False)],
    ),
    "DDPMScheduler": (
        "ddpm",
        {"clip_sample": False},
        [
            ("variance_type", "fixed_large", "variance_type", "fixed_large"),
            ("variance_type", "fixed_small_log", "variance_type", "fixed_small"),
        ],
    ),
    "PNDMScheduler": ("pndm", {}, [("skip_prk_steps", True, "skip_prk_steps", True)]),
    "LMSDiscreteScheduler": ("lms", {}, []),
    "EulerDiscreteScheduler": (
        "euler",
        {},
        [
            ("final_sigmas_type", "sigma_min", "final_sigmas_type", "sigma_min"),
            ("interpolation_type", "log_linear", "interpolation_type", "log_linear"),
            ("sigma_min", 0.05, "sigma_min", 0.05),
            ("sigma_max", 9.0, "sigma_max", 9.0),
        ],
    ),
    "EulerAncestralDiscreteScheduler": ("euler-a", {}, []),
    "HeunDiscreteScheduler": ("heun", {}, []),
    "KDPM2DiscreteScheduler": ("dpm2", {}, []),
    "KDPM2AncestralDiscreteScheduler": ("dpm2-a", {}, []),
    "DPMSolverSinglestepScheduler": (
        "dpmpp-2s",
        {},
        [
            ("solver_order", 3, "solver_order", 3),
            ("algorithm_type", "sde-dpmsolver++", "algorithm_type", "sde-dpmsolver++"),
            ("solver_type", "heun", "solver_type", "heun"),
            ("solver_type", "logrho", "solver_type", "midpoint"),
            ("lower_order_final", True, "lower_order_final", True),
            ("final_sigmas_type", "sigma_min", "final_sigmas_type", "sigma_min"),
            ("lambda_min_clipped", -5.1, "lambda_min_clipped", -5.1),
        ],
    ),
    "DPMSolverMultistepScheduler": (
        "dpmpp-2m",
        {},
        [
            ("solver_order", 1, "solver_order", 1),
            ("algorithm_type", "sde-dpmsolver++", "name", "dpmpp-2m-sde"),
            ("solver_type", "heun", "solver_type", "heun"),
            ("solver_type", "bh2", "solver_type", "midpoint"),
            ("lower_order_final", False, "lower_order_final", False),
            ("euler_at_final", True, "euler_at_final", True),
            ("final_sigmas_type", "sigma_min", "final_sigmas_type", "sigma_min"),
            ("lambda_min_clipped", -5.1, "lambda_min_clipped", -5.1),
            ("use_lu_lambdas", True, "levels", "lambdas"),
        ],
    ),
    "DPMSolverSDEScheduler": ("dpmpp-sde", {}, []),
    "DEISMultistepScheduler": (
        "deis",
        {},
        [
            ("solver_order", 3, "solver_order", 3),
            ("lower_order_final", False, "lower_order_final", False),
            ("algorithm_type", "dpmsolver++", "algorithm_type", ""),
            ("solver_type", "midpoint", "solver_type", ""),
        ],
    ),
    "UniPCMultistepScheduler": (
        "unipc",
        {},
        [
            ("solver_order", 3, "solver_order", 3),
            ("solver_type", "bh1", "solver_type", "bh1"),
            ("solver_type", "midpoint", "solver_type", "bh2"),
            ("predict_x0", False, "predict_x0", False),
            ("lower_order_final", False, "lower_order_final", False),
            ("disable_corrector", [0, 2], "disable_corrector", (0, 2)),
            ("final_sigmas_type", "sigma_min", "final_sigmas_type", "sigma_min"),
            ("sigma_min", 0.05, "sigma_min", 0.05),
            ("sigma_max", 9.0, "sigma_max", 9.0),
        ],
    ),
    "SASolverScheduler": (
        "sa-solver",
        {},
        [
            ("predictor_order", 3, "solver_order", 3),
            ("corrector_order", 1, "corrector_order", 1),
            ("algorithm_type", "noise_prediction", "predict_x0", False),
            ("lower_order_final", False, "lower_order_final", False),
            ("lambda_min_clipped", -5.1, "lambda_min_clipped", -5.1),
        ],
    ),
    "LCMScheduler": (
        "lcm",
        {},
        [
            ("original_inference_steps", 40, "original_inference_steps", 40),
            ("timestep_scaling", 8.0, "timestep_scaling", 8.0),
        ],
    ),
    "TCDScheduler": ("tcd", {}, [("original_inference_steps", 40, "original_inference_steps", 40)]),
}
"""For each diffusers class: its sampler, the keys that keep diffusers from clipping, and changes of one key.

Spacing, levels and zero terminal SNR, which many classes have, are added below."""

SPACED = [
    name for name in CLASSES if name not in ("DPMSolverSinglestepScheduler", "LCMScheduler", "TCDScheduler")
]
LEVELLED = [
    name
    for name in SPACED
    if name not in ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerAncestralDiscreteScheduler")
] + ["DPMSolverSinglestepScheduler"]
ZERO_SNR = [
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
    "TCDScheduler",
]


def file_of(class_name: str, **changes: Any) -> dict[str, Any]:
    # Few timesteps: some classes build tables of all of them, slowly.
    return {
        "_class_name": class_name,
        **COMMON,
        "num_train_timesteps": 100,
        **CLASSES[class_name][1],
        **changes,
    }


def changes_of(class_name: str) -> list[Change]:
    changes = [(key, value, field, meant) for key, value, field, meant in CLASSES[class_name][2]]
    if class_name in SPACED:
        changes += [("timestep_spacing", each, "spacing", each) for each in get_args(Spacing)]
    if class_name in LEVELLED:
        rules = ("karras", "exponential", "beta")
        changes += [(f"use_{rule}_sigmas", True, "levels", rule) for rule in rules]
    return changes


EVERY_CHANGE = [(name, change) for name in CLASSES for change in changes_of(name)]


def assert_the_same_in_diffusers(file: dict[str, Any]) -> None:
    """Check that the configuration read from a file recreates the scheduler that diffusers creates from it."""
    noise, sampler = read_scheduler(file, "it")
    original = getattr(diffusers, file["_class_name"]).from_config(file)
    recreated = reference_scheduler(noise, sampler)
    assert type(recreated) is type(original)
    # Most pipelines override steps_offset; _use_default_values lists the missing keys.
    ours = {
        key: value
        for key, value in recreated.config.items()
        if key not in ("steps_offset", "_use_default_values")
    }
    theirs = {key: original.config[key] for key in ours}
    if file.get("variance_type") == "fixed_small_log":
        assert (ours.pop("variance_type"), theirs.pop("variance_type")) == ("fixed_small", "fixed_small_log")
    assert ours == theirs
    assert read_scheduler({**recreated.config, "_class_name": file["_class_name"]}, "it") == (noise, sampler)


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize(("class_name", "change"), EVERY_CHANGE, ids=lambda value: str(value))
def test_every_key_reaches_its_field(class_name: str, change: Change) -> None:
    key, value, field, meant = change
    file = file_of(class_name, **{key: value})
    assert getattr(read_scheduler(file, "it")[1], field) == meant
    assert_the_same_in_diffusers(file)


@pytest.mark.parametrize("class_name", CLASSES)
def test_a_file_that_leaves_all_to_its_class(class_name: str) -> None:
    name, needed, _ = CLASSES[class_name]
    file = {"_class_name": class_name, **needed}
    assert read_scheduler(file, "it")[1].name == name
    assert_the_same_in_diffusers(file)


@pytest.mark.parametrize("class_name", CLASSES)
def test_zero_terminal_snr_is_of_the_classes_that_have_it(class_name: str) -> None:
    noise, _ = read_scheduler(file_of(class_name, rescale_betas_zero_snr=True), "it")
    assert noise.rescale_betas_zero_snr is (class_name in ZERO_SNR)
    if class_name not in ZERO_SNR:
        with pytest.raises(ValueError, match="has no rescale_betas_zero_snr"):
            reference_scheduler(
                noise.model_copy(update={"rescale_betas_zero_snr": True}),
                read_scheduler(file_of(class_name), "it")[1],
            )


def test_every_sampler_is_some_class() -> None:
    assert set(SCHEDULERS) == set(get_args(SamplerName)) - {
        "ipndm",
        "restart",
        "dpmpp-2s-a",
        "dpmpp-3m-sde",
        "dpm-fast",
    }
    assert {name for name, *_ in CLASSES.values()} == set(SCHEDULERS) - {"dpmpp-2m-sde"}
    assert {entry.name for entry in SCHEDULERS.values()} == set(CLASSES)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_option_of_a_sampler_is_a_key_or_an_argument(name: SamplerName) -> None:
    """No option is lost in the conversion to diffusers."""
    entry = SCHEDULERS[name]
    written = {key.field for key in entry.keys} | set(entry.step_arguments.values())
    written |= {"levels"} | ({"tau", "tau_start", "tau_end"} if name == "sa-solver" else set())
    assert set(SAMPLER_OPTIONS[name]) <= written


@pytest.mark.parametrize(
    ("sampler", "match"),
    [
        (default_sampler("ipndm"), "no ipndm"),
        (default_sampler("euler-a", levels="karras"), "has no karras levels"),
        (default_sampler("ddim", levels="ays"), "has no ays levels"),
        (default_sampler("dpmpp-2s", levels="lambdas"), "has no lambdas levels"),
        (default_sampler("dpmpp-2m", levels="ays"), "has no ays levels"),
    ],
)
def test_what_diffusers_does_not_have(sampler: SamplerConfig, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        reference_scheduler(NoiseConfig(**COMMON), sampler)


def test_what_diffusers_leaves_to_the_caller_of_step() -> None:
    noise = NoiseConfig(**COMMON)
    lms = reference_scheduler(noise, default_sampler("lms", solver_order=2))
    assert inspect.signature(lms.step).parameters["order"].default == 2
    euler = reference_scheduler(noise, default_sampler("euler", s_churn=3.0, s_tmax=9.0))
    parameters = inspect.signature(euler.step).parameters
    assert (parameters["s_churn"].default, parameters["s_tmax"].default) == (3.0, 9.0)
    assert parameters["s_noise"].default == 1.0
    sa_solver = reference_scheduler(noise, default_sampler("sa-solver", tau=0.5, tau_end=600.0))
    assert [sa_solver.tau_func(timestep) for timestep in (199, 200, 600, 601)] == [0, 0.5, 0.5, 0]


PIPELINES: dict[ModelKind, Any] = {
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
    config: dict[str, Any], offset: int | None, kind: ModelKind, pipeline_class: Any
) -> None:
    file_config = {key: value for key, value in config.items() if key != "steps_offset"}
    file_config |= {} if offset is None else {"steps_offset": offset}
    scheduler = getattr(diffusers, config["_class_name"]).from_config(file_config)
    parameters = inspect.signature(pipeline_class.__init__).parameters
    components = {name: None for name in parameters if name != "self"} | {"scheduler": scheduler}
    if "requires_safety_checker" in components:
        components["requires_safety_checker"] = False
    pipeline = pipeline_class(**components)

    assert read_scheduler(file_config, "it", kind)[1].steps_offset == pipeline.scheduler.config.get(
        "steps_offset", 0
    )


def test_keys_of_another_class_are_ignored_as_diffusers_ignores_them() -> None:
    # The published DDIM files carry PNDM's skip_prk_steps, SD-Turbo's Euler file carries DDIM's clip_sample.
    assert read_scheduler({**DDIM, "skip_prk_steps": False}, "it")[1].name == "ddim"
    assert read_scheduler({**EULER, "clip_sample": True, "sample_max_value": 1.0}, "it")[1].name == "euler"


# diffusers reads these keys where levels follow a rule, though the classes do not list them.
HIDDEN_ENDS = [name for name in LEVELLED if name not in ("EulerDiscreteScheduler", "UniPCMultistepScheduler")]


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        (DDIM, "thresholding", True),
        (DDIM, "trained_betas", [0.1, 0.2]),
        (DDIM, "beta_schedule", "squaredcos_cap_v2"),
        (DDIM, "prediction_type", "flow_prediction"),
        (DDIM, "rescale_betas_zero_snr", "maybe"),
        (DDIM, "timestep_spacing", "uniform"),
        (DDIM, "num_train_timesteps", 0),
        (PNDM, "skip_prk_steps", "maybe"),
        (PNDM, "beta_start", "small"),
        (EULER, "use_karras_sigmas", "yes"),
        (EULER, "timestep_type", "continuous"),
        (EULER, "interpolation_type", "cubic"),
        (EULER, "sigma_min", -0.1),
        (DPM, "use_flow_sigmas", True),
        (DPM, "use_dynamic_shifting", True),
        (DPM, "algorithm_type", "flow-dpmsolver"),
        (DPM, "solver_order", 4),
        (DPM, "solver_type", "simpson"),
        (DPM, "lambda_min_clipped", float("inf")),
        (DPM, "variance_type", "learned"),
        (DPM, "thresholding", True),
        (DPM, "prediction_type", "flow_prediction"),
        (DPM, "final_sigmas_type", "other"),
        (file_of("DDPMScheduler"), "variance_type", "fixed_large_log"),
        (file_of("DDPMScheduler"), "variance_type", "learned_range"),
        (file_of("HeunDiscreteScheduler"), "beta_schedule", "exp"),
        (file_of("DPMSolverSinglestepScheduler"), "algorithm_type", "sde-dpmsolver"),
        (file_of("DPMSolverSinglestepScheduler"), "variance_type", "learned"),
        (file_of("DPMSolverSDEScheduler"), "noise_sampler_seed", 3),
        (file_of("DEISMultistepScheduler"), "algorithm_type", "sde-dpmsolver++"),
        (file_of("DEISMultistepScheduler"), "solver_type", "rk4"),
        (file_of("UniPCMultistepScheduler"), "solver_p", {"_class_name": "DDIMScheduler"}),
        (file_of("UniPCMultistepScheduler"), "shift_terminal", 0.1),
        (file_of("UniPCMultistepScheduler"), "disable_corrector", "last"),
        (file_of("SASolverScheduler"), "tau_func", "constant"),
        (file_of("SASolverScheduler"), "predictor_order", 4),
        (file_of("SASolverScheduler"), "corrector_order", 4),
        (file_of("SASolverScheduler"), "algorithm_type", "dpmsolver"),
        (file_of("LCMScheduler"), "thresholding", True),
        (file_of("LCMScheduler"), "timestep_scaling", 0.0),
        (file_of("TCDScheduler"), "original_inference_steps", None),
        *((file_of(name), "trained_betas", [0.1]) for name in CLASSES),
        *((file_of(name, use_karras_sigmas=True), "sigma_max", 9.0) for name in HIDDEN_ENDS),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_key(config: dict[str, Any], key: str, value: object) -> None:
    read_scheduler(config, "it")
    with pytest.raises(CheckpointError, match=f"has {key} = ") as refused:
        read_scheduler({**config, key: value}, "it")
    assert repr(value) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "scheduler_config.json" in str(refused.value)


def test_two_rules_for_levels_are_refused() -> None:
    with pytest.raises(CheckpointError, match="both use_karras_sigmas and use_lu_lambdas"):
        read_scheduler({**DPM, "use_karras_sigmas": True, "use_lu_lambdas": True}, "it")


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("algorithm", ["dpmsolver", "sde-dpmsolver", "deis"])
def test_an_end_that_an_algorithm_cannot_reach_is_refused(algorithm: str) -> None:
    file = {**DPM, "algorithm_type": algorithm}
    with pytest.raises(ValueError, match="final_sigmas_type"):
        diffusers.DPMSolverMultistepScheduler.from_config(file)
    with pytest.raises(CheckpointError, match="has final_sigmas_type = 'zero'"):
        read_scheduler(file, "it")
    assert_the_same_in_diffusers({**file, "final_sigmas_type": "sigma_min"})


def test_an_order_that_an_algorithm_does_not_have_is_refused() -> None:
    file = {**DPM, "algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}
    assert read_scheduler(file, "it")[1].solver_order == 2
    with pytest.raises(CheckpointError, match="has solver_order = 3"):
        read_scheduler({**file, "solver_order": 3}, "it")


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "HeunDiscreteScheduler", "LCMScheduler"])
def test_clipping_is_for_pipelines_that_let_the_file_decide(name: str) -> None:
    """diffusers' StableDiffusionPipeline sets clip_sample to False; its pipelines of other kinds clip by default."""
    file = file_of(name)
    expected = read_scheduler({**file, "clip_sample": False}, "it")
    unsaid = {key: value for key, value in file.items() if key != "clip_sample"}
    kinds: tuple[ModelKind, ...] = ("base", "v", "turbo")
    for kind in kinds:
        assert read_scheduler({**file, "clip_sample": True}, "it", kind) == expected
        assert read_scheduler(unsaid, "it", kind) == expected
    clipping: tuple[ModelKind, ...] = ("inpainting", "depth")
    for kind in clipping:
        with pytest.raises(CheckpointError, match="clip_sample = True"):
            read_scheduler({**file, "clip_sample": True}, "it", kind)


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(CheckpointError, match="trained_betas") as caught:
        read_scheduler({**DDIM, "trained_betas": [0.1] * 1000}, "it")
    assert len(str(caught.value)) < 400


def test_defaults_that_cannot_be_honoured_are_refused_too() -> None:
    # diffusers clips unless the file says otherwise.
    with pytest.raises(CheckpointError, match="clip_sample = True"):
        read_scheduler({"_class_name": "DDIMScheduler", **COMMON}, "it", "inpainting")
    assert read_scheduler({"_class_name": "PNDMScheduler", **COMMON}, "it")[1].skip_prk_steps is False


@pytest.mark.parametrize("name", ["VQDiffusionScheduler", "FlowMatchEulerDiscreteScheduler", None, 3])
def test_an_unknown_class_is_named(name: object) -> None:
    with pytest.raises(CheckpointError, match=f"{name}.*is not supported.*DDIMScheduler, DDPMScheduler"):
        read_scheduler({"_class_name": name, **COMMON}, "the folder")


def test_a_class_with_its_own_noise_is_refused_for_that() -> None:
    with pytest.raises(CheckpointError, match="'IPNDMScheduler' ignores a checkpoint's noise schedule"):
        read_scheduler({"_class_name": "IPNDMScheduler"}, "it")


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
        ("rescale_betas_zero_snr", "maybe"),
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
