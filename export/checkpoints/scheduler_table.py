"""Table of samplers and their diffusers schedulers, key by key, for conversion in both directions."""

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
"""Flags for noise levels. At most one may be set; without any, levels are spaced."""

Values = Mapping[Any, Any]

# diffusers maps values from another scheduler's configuration to the class's nearest value.
_ORDER: Values = {1: 1, 2: 2, 3: 3}
_DPM_SOLVER_TYPE: Values = {
    "midpoint": "midpoint",
    "heun": "heun",
    "logrho": "midpoint",
    "bh1": "midpoint",
    "bh2": "midpoint",
}
_UNIPC_SOLVER_TYPE: Values = {"bh1": "bh1", "bh2": "bh2", "midpoint": "bh2", "heun": "bh2", "logrho": "bh2"}
# The _log type stores the logarithm of the same variance.
_VARIANCE_TYPE: Values = {
    "fixed_small": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_small_log": "fixed_small",
}


@dataclass(frozen=True, slots=True)
class Key:
    """A scheduler's key and its field in SamplerConfig.

    ``values`` maps each accepted value of the key to the field's value. If several map to the same, the first is
    written back. None accepts any value and keeps it.
    """

    name: str
    field: str
    values: Values | None = None


def _same_names(*names: str) -> tuple[Key, ...]:
    return tuple(Key(name, name) for name in names)


@dataclass(frozen=True, slots=True)
class SchedulerClass:
    """The diffusers class of a sampler."""

    name: str
    keys: tuple[Key, ...]
    levels: tuple[Levels, ...] = ("spaced",)
    zero_snr: bool = False
    """The class has rescale_betas_zero_snr."""
    has_offset: bool = True
    """The class has steps_offset."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Keys that are always written, because the class has another default."""
    ignored: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys that have no effect while they have one of these values; () means any value."""
    step_arguments: Mapping[str, str] = field(default_factory=dict)
    """Arguments of the scheduler's step(), and their fields in SamplerConfig; they are not in its configuration."""


_SPACING = Key("timestep_spacing", "spacing")
_LAMBDA_MIN = Key("lambda_min_clipped", "lambda_min_clipped")
_K_LEVELS: tuple[Levels, ...] = ("spaced", "karras", "exponential", "beta")
_NO_CLIP = {"clip_sample": False}
_MULTISTEP = (
    _SPACING,
    Key("solver_order", "solver_order", _ORDER),
    Key("solver_type", "solver_type", _DPM_SOLVER_TYPE),
    *_same_names("lower_order_final", "euler_at_final", "final_sigmas_type"),
    _LAMBDA_MIN,
)


def _algorithms(*names: str, **also: str) -> Key:
    return Key("algorithm_type", "algorithm_type", {name: name for name in names} | also)


SCHEDULERS: dict[SamplerName, SchedulerClass] = {
    "ddim": SchedulerClass(
        "DDIMScheduler", (_SPACING, *_same_names("set_alpha_to_one")), zero_snr=True, fixed=_NO_CLIP
    ),
    "ddpm": SchedulerClass(
        "DDPMScheduler",
        (_SPACING, Key("variance_type", "variance_type", _VARIANCE_TYPE)),
        zero_snr=True,
        fixed=_NO_CLIP,
    ),
    "pndm": SchedulerClass("PNDMScheduler", (_SPACING, *_same_names("set_alpha_to_one", "skip_prk_steps"))),
    "lms": SchedulerClass(
        "LMSDiscreteScheduler", (_SPACING,), _K_LEVELS, step_arguments={"order": "solver_order"}
    ),
    "euler": SchedulerClass(
        "EulerDiscreteScheduler",
        (_SPACING, *_same_names("final_sigmas_type", "interpolation_type", "sigma_min", "sigma_max")),
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
            *_same_names("lower_order_final", "final_sigmas_type"),
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
        (_SPACING, Key("solver_order", "solver_order", _ORDER), *_same_names("lower_order_final")),
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
            *_same_names("predict_x0", "lower_order_final", "disable_corrector", "final_sigmas_type"),
            *_same_names("sigma_min", "sigma_max"),
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
            *_same_names("lower_order_final"),
            _LAMBDA_MIN,
        ),
        _K_LEVELS,
    ),
    # Timesteps of these two are spaced by original_inference_steps only, and stay within the schedule.
    "lcm": SchedulerClass(
        "LCMScheduler",
        _same_names("original_inference_steps", "timestep_scaling"),
        zero_snr=True,
        ignored={"timestep_spacing": (), "set_alpha_to_one": ()},
    ),
    "tcd": SchedulerClass(
        "TCDScheduler",
        _same_names("original_inference_steps"),
        zero_snr=True,
        ignored={"timestep_spacing": (), "set_alpha_to_one": (), "timestep_scaling": ()},
    ),
}
"""All samplers except ipndm: diffusers' IPNDMScheduler ignores a checkpoint's noise schedule."""
