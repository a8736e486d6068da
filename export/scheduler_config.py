"""From a diffusers ``scheduler_config.json`` to the noise and sampler configurations of a bundle."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
from pydantic import ValidationError

from sd2rt.engines.errors import CheckpointError
from sd2rt.engines.kinds import Variant
from sd2rt.engines.sampling import NoiseConfig, SamplerConfig, SamplerName

_SAMPLERS: dict[str, SamplerName] = {
    "PNDMScheduler": "pndm",
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "DPMSolverMultistepScheduler": "dpmpp-2m",
}

# Any of these adds noise in the same way.
_NOISERS = (*_SAMPLERS, "DDPMScheduler")

_NOISE_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")

# What a scheduler's keys are called in SamplerConfig, and what SamplerConfig says where the scheduler has no
# such key.
_SAMPLER_KEYS: dict[str, tuple[str, Any]] = {
    "timestep_spacing": ("spacing", "leading"),
    "set_alpha_to_one": ("set_alpha_to_one", False),
    "final_sigmas_type": ("final_sigma", "zero"),
    "lower_order_final": ("lower_order_final", True),
    "solver_type": ("solver_type", "midpoint"),
}

# Options that sd2rt's samplers do not have: only these values, which leave them out, are accepted.
_OFF: dict[str, tuple[Any, ...]] = {
    "trained_betas": (None,),
    "clip_sample": (False,),
    "thresholding": (False,),
    "rescale_betas_zero_snr": (False,),
    "skip_prk_steps": (True,),
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "algorithm_type": ("dpmsolver++",),
    "solver_order": (2,),
    "euler_at_final": (False,),
    "lambda_min_clipped": (float("-inf"),),
    "variance_type": (None,),
}

# Parameters of options that _OFF turns off, and steps_offset (see below).
_WITHOUT_EFFECT = {
    "dynamic_thresholding_ratio",
    "clip_sample_range",
    "sample_max_value",
    "flow_shift",
    "time_shift_type",
    "steps_offset",
}

# Most of diffusers' pipelines set this whatever the file says, and they are what images are compared with. Those
# of these kinds leave it as it is.
_STEPS_OFFSET = 1
_OWN_STEPS_OFFSET: frozenset[Variant] = frozenset({"depth", "upscaler"})


def read_scheduler(
    config: Mapping[str, Any], origin: str, kind: Variant = "base"
) -> tuple[NoiseConfig, SamplerConfig]:
    """The forward process and the default sampler that a scheduler's configuration describes.

    Args:
        config: the content of ``scheduler_config.json``.
        origin: where it is from, for messages.
        kind: of model: diffusers' pipelines read some keys differently.

    A key that the file leaves out has the default of the diffusers class; a key that the class does not know
    is ignored, as diffusers does. Raises CheckpointError naming the class or the key that cannot be honoured.
    """
    name, effective = _effective(config, origin, tuple(_SAMPLERS))
    handled = {*_NOISE_KEYS, *_SAMPLER_KEYS, *_WITHOUT_EFFECT}
    for key, value in effective.items():
        if key not in handled:
            _refuse_on(name, key, value, origin)

    sampler = {field: effective.get(key, neutral) for key, (field, neutral) in _SAMPLER_KEYS.items()}
    offset = effective.get("steps_offset", 0) if kind in _OWN_STEPS_OFFSET else _STEPS_OFFSET
    try:
        return (
            _noise(effective),
            SamplerConfig(name=_SAMPLERS[name], steps_offset=offset, **sampler),
        )
    except ValidationError as error:
        raise _invalid(name, error, origin) from None


def read_noise(config: Mapping[str, Any], origin: str) -> NoiseConfig:
    """The forward process alone, of a scheduler that adds noise and takes no steps.

    Its other options have no effect. Raises CheckpointError naming the class or the key that cannot be
    honoured.
    """
    name, effective = _effective(config, origin, _NOISERS)
    for key in ("trained_betas", "rescale_betas_zero_snr"):
        if key in effective:
            _refuse_on(name, key, effective[key], origin)
    try:
        return _noise(effective)
    except ValidationError as error:
        raise _invalid(name, error, origin) from None


def _effective(
    config: Mapping[str, Any], origin: str, classes: tuple[str, ...]
) -> tuple[str, dict[str, Any]]:
    """The scheduler's class, and what each key of that class is once the file's values are in."""
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in classes:
        raise CheckpointError(
            f"{origin}: scheduler class {name!r} is not supported: replace scheduler_config.json by that of "
            f"one of {', '.join(classes)}"
        )
    defaults = _defaults(name)
    return name, defaults | {key: value for key, value in config.items() if key in defaults}


def _refuse_on(name: str, key: str, value: object, origin: str) -> None:
    """Raise CheckpointError unless an option that sd2rt does not have is off."""
    # A key that a later diffusers adds is off as long as it has its default.
    accepted = _OFF[key] if key in _OFF else (_defaults(name)[key],)
    if not any(value == off and type(value) is type(off) for off in accepted):
        raise CheckpointError(
            f"{origin}: {name} has {key} = {value!r}, which sd2rt does not have (it wants "
            f"{accepted[0]!r}): set {key} to {_json(accepted[0])} in scheduler_config.json"
        )


def _noise(effective: Mapping[str, Any]) -> NoiseConfig:
    return NoiseConfig(**{key: effective[key] for key in _NOISE_KEYS})


def _invalid(name: str, error: ValidationError, origin: str) -> CheckpointError:
    first = error.errors()[0]
    key = _original_key(str(first["loc"][0]))
    return CheckpointError(
        f"{origin}: {name} has {key} = {first['input']!r}, which sd2rt does not have ({first['msg']}): "
        f"change {key} in scheduler_config.json"
    )


def _defaults(name: str) -> dict[str, Any]:
    """What the installed diffusers assumes for the keys that a file leaves out."""
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in ("self", "kwargs")}


def _original_key(field: str) -> str:
    return next((key for key, (name, _) in _SAMPLER_KEYS.items() if name == field), field)


def _json(value: Any) -> str:
    return {True: "true", False: "false", None: "null"}.get(value, str(value))
