"""From a diffusers ``scheduler_config.json`` to the noise and sampler configurations of a bundle."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import diffusers
from pydantic import ValidationError

from sd2rt.engines.bundle.model_kinds import ModelKind
from sd2rt.engines.bundle.sampler_config import SAMPLER_OPTIONS, NoiseConfig, SamplerConfig, SamplerName
from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints.scheduler_table import LEVEL_FLAGS, SCHEDULERS, Key, SchedulerClass

_CLASSES = tuple(dict.fromkeys(entry.name for entry in SCHEDULERS.values()))

# These look the noise of a timestep up in one table, in the same way.
_NOISERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")

_NOISE_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")

# Options that sd2rt's samplers do not have: only these values, which leave them out, are accepted.
_OFF: dict[str, tuple[Any, ...]] = {
    "trained_betas": (None,),
    "clip_sample": (False,),
    "thresholding": (False,),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "shift_terminal": (None,),
    "timestep_type": ("discrete",),
    "variance_type": (None,),
    "tau_func": (None,),
    "solver_p": (None,),
    "noise_sampler_seed": (None,),
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
_OWN_STEPS_OFFSET: frozenset[ModelKind] = frozenset({"depth", "upscaler"})


def read_scheduler(
    config: Mapping[str, Any], origin: str, kind: ModelKind = "base"
) -> tuple[NoiseConfig, SamplerConfig]:
    """The forward process and the default sampler that a scheduler's configuration describes.

    Args:
        config: the content of ``scheduler_config.json``.
        origin: where it is from, for messages.
        kind: of model: diffusers' pipelines read some keys differently.

    A key that the file leaves out has the default of the diffusers class; a key that the class does not know
    is ignored, as diffusers does. Raises CheckpointError naming the class or the key that cannot be honoured.
    """
    name, effective = _effective(config, origin, _CLASSES)
    sampler, entry = _sampler(name, effective)
    known = {key.name for key in entry.keys} | {*_NOISE_KEYS, *LEVEL_FLAGS, *_WITHOUT_EFFECT}
    for key, value in effective.items():
        if key in known or (key == "rescale_betas_zero_snr" and entry.zero_snr):
            continue
        if key in entry.ignored:
            _refuse_unless(name, key, value, entry.ignored[key], origin)
        else:
            # A key that a later diffusers adds is off as long as it has its default.
            _refuse_unless(name, key, value, _OFF.get(key, (_defaults(name)[key],)), origin)

    # What a configuration leaves to step()'s caller is as it is where nobody says.
    fields = dict(SAMPLER_OPTIONS[sampler])
    fields |= {key.field: _field(name, key, effective[key.name], origin) for key in entry.keys}
    fields["levels"] = _levels(name, entry, effective, config, origin)
    algorithm = effective.get("algorithm_type")
    if algorithm in ("dpmsolver", "sde-dpmsolver", "deis") and fields.get("final_sigmas_type") == "zero":
        raise CheckpointError(
            f"{origin}: {name} has final_sigmas_type = 'zero', which its algorithm_type {algorithm!r} cannot "
            f"reach: set final_sigmas_type to sigma_min in scheduler_config.json"
        )
    if algorithm == "sde-dpmsolver" and fields["solver_order"] == 3:
        raise CheckpointError(
            f"{origin}: {name} has solver_order = 3, which its algorithm_type 'sde-dpmsolver' does not have: set "
            f"solver_order to 2 in scheduler_config.json"
        )
    offset = effective.get("steps_offset", 0) if kind in _OWN_STEPS_OFFSET else _STEPS_OFFSET
    noise = _noise(name, effective, origin)
    try:
        return noise, SamplerConfig(name=sampler, steps_offset=offset, **fields)
    except ValidationError as error:
        raise _invalid(name, error, origin, {key.field: key.name for key in entry.keys}) from None


def read_noise(config: Mapping[str, Any], origin: str) -> NoiseConfig:
    """The forward process alone, of a scheduler that adds noise and takes no steps.

    Its other options have no effect. Raises CheckpointError naming the class or the key that cannot be
    honoured.
    """
    name, effective = _effective(config, origin, _NOISERS)
    _refuse_unless(name, "trained_betas", effective["trained_betas"], _OFF["trained_betas"], origin)
    return _noise(name, effective, origin)


def _effective(
    config: Mapping[str, Any], origin: str, classes: tuple[str, ...]
) -> tuple[str, dict[str, Any]]:
    """The scheduler's class, and what each key of that class is once the file's values are in."""
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in classes:
        why = "has a noise schedule of its own" if name == "IPNDMScheduler" else "is not supported"
        raise CheckpointError(
            f"{origin}: scheduler class {name!r} {why}: replace scheduler_config.json by that of "
            f"one of {', '.join(classes)}"
        )
    defaults = _defaults(name)
    return name, defaults | {key: value for key, value in config.items() if key in defaults}


def _sampler(name: str, effective: Mapping[str, Any]) -> tuple[SamplerName, SchedulerClass]:
    """The sampler that a class is; of one that is two, that which has the configured algorithm."""
    first, *others = [(sampler, entry) for sampler, entry in SCHEDULERS.items() if entry.name == name]
    for sampler, entry in others:
        [values] = [key.values for key in entry.keys if key.name == "algorithm_type"]
        if values is not None and _among(effective["algorithm_type"], values):
            return sampler, entry
    return first


def _field(name: str, key: Key, value: Any, origin: str) -> Any:
    """What a field of SamplerConfig is by its key's value."""
    if key.values is not None:
        _refuse_unless(name, key.name, value, tuple(key.values), origin)
        return key.values[value]
    if key.field == "lambda_min_clipped" and value == float("-inf"):
        return None
    return value


def _levels(
    name: str, entry: SchedulerClass, effective: Mapping[str, Any], config: Mapping[str, Any], origin: str
) -> str:
    """The levels that the flags ask for.

    diffusers reads sigma_min and sigma_max even where they are no keys of the class, once levels are not those
    of spaced timesteps.
    """
    flags = [flag for flag in LEVEL_FLAGS if effective.get(flag) not in (None, False)]
    for flag in flags:
        _refuse_unless(name, flag, effective[flag], (True,), origin)
    if len(flags) > 1:
        raise CheckpointError(
            f"{origin}: {name} has both {flags[0]} and {flags[1]}: set one of them to false in "
            f"scheduler_config.json"
        )
    if not flags:
        return "spaced"
    for end in {"sigma_min", "sigma_max"} - {key.name for key in entry.keys}:
        _refuse_unless(name, end, config.get(end), (None,), origin)
    return LEVEL_FLAGS[flags[0]]


def _among(value: object, accepted: Any) -> bool:
    """Whether a value is one of those accepted: 1 and True are not the same, and a list is none."""
    return any(value == each and type(value) is type(each) for each in accepted)


def _refuse_unless(name: str, key: str, value: object, accepted: tuple[Any, ...], origin: str) -> None:
    """Raise CheckpointError unless a key's value is one of those accepted; () accepts all."""
    if accepted and not _among(value, accepted):
        raise CheckpointError(
            f"{origin}: {name} has {key} = {value!r}, which sd2rt does not have (it wants "
            f"{accepted[0]!r}): set {key} to {json.dumps(accepted[0])} in scheduler_config.json"
        )


def _noise(name: str, effective: Mapping[str, Any], origin: str) -> NoiseConfig:
    try:
        return NoiseConfig(
            **{key: effective[key] for key in _NOISE_KEYS},
            rescale_betas_zero_snr=effective.get("rescale_betas_zero_snr", False),
        )
    except ValidationError as error:
        raise _invalid(name, error, origin, {}) from None


def _invalid(name: str, error: ValidationError, origin: str, keys: Mapping[str, str]) -> CheckpointError:
    first = error.errors()[0]
    key = keys.get(str(first["loc"][0]), str(first["loc"][0]))
    return CheckpointError(
        f"{origin}: {name} has {key} = {first['input']!r}, which sd2rt does not have ({first['msg']}): "
        f"change {key} in scheduler_config.json"
    )


def _defaults(name: str) -> dict[str, Any]:
    """What the installed diffusers assumes for the keys that a file leaves out."""
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in ("self", "kwargs")}
