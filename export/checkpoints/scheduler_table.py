"""Which diffusers scheduler each sampler is, key by key: one table that is read in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sd2rt.engines.bundle.sampler_config import Levels, SamplerName

LEVEL_FLAGS: dict[str, Levels] = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_lu_lambdas": "lambdas",
}
"""Keys of which at most one is set, and the levels that it stands for; none of them is spaced levels."""

Values = Mapping[Any, Any]

# diffusers rewrites what another scheduler's configuration says to the nearest that the class has.
_ORDER: Values = {1: 1, 2: 2, 3: 3}
_DPM_SOLVER_TYPE: Values = {
    "midpoint": "midpoint",
    "heun": "heun",
    "logrho": "midpoint",
    "bh1": "midpoint",
    "bh2": "midpoint",
}
_UNIPC_SOLVER_TYPE: Values = {"bh1": "bh1", "bh2": "bh2", "midpoint": "bh2", "heun": "bh2", "logrho": "bh2"}
# A variance of which the logarithm is kept is the same variance.
_VARIANCE_TYPE: Values = {
    "fixed_small": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_small_log": "fixed_small",
}


@dataclass(frozen=True, slots=True)
class Key:
    """A scheduler's key and the field of SamplerConfig that it becomes.

    ``values`` are the only ones that the key may have, each with what the field then is; of several that mean
    the same, the first is the one to write. None: any value, unchanged.
    """

    name: str
    field: str
    values: Values | None = None


def _same(*names: str) -> tuple[Key, ...]:
    return tuple(Key(name, name) for name in names)


@dataclass(frozen=True, slots=True)
class SchedulerClass:
    """A diffusers class as one sampler."""

    name: str
    keys: tuple[Key, ...]
    levels: tuple[Levels, ...] = ("spaced",)
    zero_snr: bool = False
    """The class has rescale_betas_zero_snr."""
    has_offset: bool = True
    """The class has steps_offset."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Keys that are always written, since the class has another default."""
    ignored: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys with which nothing changes while they have one of these values; () stands for any."""
    step_arguments: Mapping[str, str] = field(default_factory=dict)
    """Arguments of the scheduler's step() that are fields of SamplerConfig, and not in its configuration."""


_SPACING = Key("timestep_spacing", "spacing")
_LAMBDA_MIN = Key("lambda_min_clipped", "lambda_min_clipped")
_K_LEVELS: tuple[Levels, ...] = ("spaced", "karras", "exponential", "beta")
_NO_CLIP = {"clip_sample": False}
_MULTISTEP = (
    _SPACING,
    Key("solver_order", "solver_order", _ORDER),
    Key("solver_type", "solver_type", _DPM_SOLVER_TYPE),
    *_same("lower_order_final", "euler_at_final", "final_sigmas_type"),
    _LAMBDA_MIN,
)


def _algorithms(*names: str, **also: str) -> Key:
    return Key("algorithm_type", "algorithm_type", {name: name for name in names} | also)


SCHEDULERS: dict[SamplerName, SchedulerClass] = {
    "ddim": SchedulerClass(
        "DDIMScheduler", (_SPACING, *_same("set_alpha_to_one")), zero_snr=True, fixed=_NO_CLIP
    ),
    "ddpm": SchedulerClass(
        "DDPMScheduler",
        (_SPACING, Key("variance_type", "variance_type", _VARIANCE_TYPE)),
        zero_snr=True,
        fixed=_NO_CLIP,
    ),
    "pndm": SchedulerClass("PNDMScheduler", (_SPACING, *_same("set_alpha_to_one", "skip_prk_steps"))),
    "lms": SchedulerClass(
        "LMSDiscreteScheduler", (_SPACING,), _K_LEVELS, step_arguments={"order": "solver_order"}
    ),
    "euler": SchedulerClass(
        "EulerDiscreteScheduler",
        (_SPACING, *_same("final_sigmas_type", "interpolation_type", "sigma_min", "sigma_max")),
        _K_LEVELS,
        zero_snr=True,
        step_arguments={name: name for name in ("s_churn", "s_tmin", "s_tmax", "s_noise")},
    ),
    "euler-a": SchedulerClass("EulerAncestralDiscreteScheduler", (_SPACING,), zero_snr=True),
    "heun": SchedulerClass("HeunDiscreteScheduler", (_SPACING,), _K_LEVELS),
    "dpm2": SchedulerClass("KDPM2DiscreteScheduler", (_SPACING,), _K_LEVELS),
    "dpm2-a": SchedulerClass("KDPM2AncestralDiscreteScheduler", (_SPACING,), _K_LEVELS),
    "dpmpp-2s": SchedulerClass(
        "DPMSolverSinglestepScheduler",
        (
            Key("solver_order", "solver_order", _ORDER),
            _algorithms("dpmsolver++", "dpmsolver", "sde-dpmsolver++", deis="dpmsolver++"),
            Key("solver_type", "solver_type", _DPM_SOLVER_TYPE),
            *_same("lower_order_final", "final_sigmas_type"),
            _LAMBDA_MIN,
        ),
        _K_LEVELS,
        has_offset=False,
    ),
    "dpmpp-2m": SchedulerClass(
        "DPMSolverMultistepScheduler",
        (*_MULTISTEP, _algorithms("dpmsolver++", "dpmsolver", deis="dpmsolver++")),
        (*_K_LEVELS, "lambdas"),
        zero_snr=True,
    ),
    "dpmpp-2m-sde": SchedulerClass(
        "DPMSolverMultistepScheduler",
        (*_MULTISTEP, _algorithms("sde-dpmsolver++", "sde-dpmsolver")),
        (*_K_LEVELS, "lambdas"),
        zero_snr=True,
    ),
    "dpmpp-sde": SchedulerClass(
        "DPMSolverSDEScheduler", (_SPACING,), _K_LEVELS, step_arguments={"s_noise": "s_noise"}
    ),
    "deis": SchedulerClass(
        "DEISMultistepScheduler",
        (_SPACING, Key("solver_order", "solver_order", _ORDER), *_same("lower_order_final")),
        _K_LEVELS,
        ignored={
            "algorithm_type": ("deis", "dpmsolver", "dpmsolver++"),
            "solver_type": ("logrho", "midpoint", "heun", "bh1", "bh2"),
        },
    ),
    "unipc": SchedulerClass(
        "UniPCMultistepScheduler",
        (
            _SPACING,
            Key("solver_order", "solver_order", _ORDER),
            Key("solver_type", "solver_type", _UNIPC_SOLVER_TYPE),
            *_same("predict_x0", "lower_order_final", "disable_corrector", "final_sigmas_type"),
            *_same("sigma_min", "sigma_max"),
        ),
        _K_LEVELS,
        zero_snr=True,
    ),
    "sa-solver": SchedulerClass(
        "SASolverScheduler",
        (
            _SPACING,
            Key("predictor_order", "solver_order", _ORDER),
            Key("corrector_order", "corrector_order", _ORDER),
            Key("algorithm_type", "predict_x0", {"data_prediction": True, "noise_prediction": False}),
            *_same("lower_order_final"),
            _LAMBDA_MIN,
        ),
        _K_LEVELS,
    ),
    # Their lists of timesteps are spaced by original_inference_steps alone and never leave the schedule.
    "lcm": SchedulerClass(
        "LCMScheduler",
        _same("original_inference_steps", "timestep_scaling"),
        zero_snr=True,
        ignored={"timestep_spacing": (), "set_alpha_to_one": ()},
    ),
    "tcd": SchedulerClass(
        "TCDScheduler",
        _same("original_inference_steps"),
        zero_snr=True,
        ignored={"timestep_spacing": (), "set_alpha_to_one": (), "timestep_scaling": ()},
    ),
}
"""All samplers but ipndm: diffusers' IPNDMScheduler has a noise schedule of its own, not a checkpoint's."""
