"""Convert a diffusers ``scheduler_config.json`` to a bundle's noise and sampler configurations."""

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
from sd2rt.engines.printable import repr_of, shown
from sd2rt.export.checkpoints.scheduler_table import LEVEL_FLAGS, SCHEDULERS, Key, SchedulerClass

_CLASSES = tuple(dict.fromkeys(entry.name for entry in SCHEDULERS.values()))

# Schedulers with the same add_noise(), which looks a timestep up in a table.
_NOISE_SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")

_NOISE_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")

# Options that sd2rt's samplers lack: only these values, which disable them, are accepted.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
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

# Parameters of options in _UNSUPPORTED, and steps_offset (see below).
_NO_EFFECT = {
    "dynamic_thresholding_ratio",
    "clip_sample_range",
    "sample_max_value",
    "flow_shift",
    "time_shift_type",
    "steps_offset",
}

# diffusers' pipelines of these kinds set clip_sample to False, whatever the file says or leaves out.
_NEVER_CLIPS: frozenset[ModelKind] = frozenset({"base", "v", "turbo"})

# Most of diffusers' pipelines, the reference for images, override steps_offset with this value. Pipelines of the
# kinds below keep the file's value.
_STEPS_OFFSET = 1
_KEEPS_STEPS_OFFSET: frozenset[ModelKind] = frozenset({"depth", "upscaler"})


def read_scheduler(
    config: Mapping[str, Any], origin: str, kind: ModelKind = "base"
) -> tuple[NoiseConfig, SamplerConfig]:
    """The forward process and the default sampler of a scheduler's configuration.

    A missing key has the default of the diffusers class. A key that the class does not know is ignored, as in
    diffusers.

    Args:
        config: the content of ``scheduler_config.json``.
        origin: source of the configuration, for messages.
        kind: kind of model; diffusers' pipelines read some keys differently.

    Raises:
        CheckpointError: the class, or the value of a key, is not supported.
    """
    name, effective = _effective(config, origin, _CLASSES)
    if kind in _NEVER_CLIPS and "clip_sample" in effective:
        effective["clip_sample"] = False
    sampler, entry = _sampler(name, effective)
    handled = {key.name for key in entry.keys} | {*_NOISE_KEYS, *LEVEL_FLAGS, *_NO_EFFECT}
    for key, value in effective.items():
        if key in handled or (key == "rescale_betas_zero_snr" and entry.zero_snr):
            continue
        if key in entry.ignored:
            _refuse_unless(name, key, value, entry.ignored[key], origin)
        else:
            # A key added by a later diffusers is accepted at its default value.
            _refuse_unless(name, key, value, _UNSUPPORTED.get(key, (_defaults(name)[key],)), origin)

    # Options that diffusers takes as arguments of step() keep their defaults.
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
    offset = effective.get("steps_offset", 0) if kind in _KEEPS_STEPS_OFFSET else _STEPS_OFFSET
    noise = _noise(name, effective, origin)
    try:
        return noise, SamplerConfig(name=sampler, steps_offset=offset, **fields)
    except ValidationError as error:
        raise _invalid(name, error, origin, {key.field: key.name for key in entry.keys}) from None


def read_noise(config: Mapping[str, Any], origin: str) -> NoiseConfig:
    """The forward process of a scheduler that only adds noise; its other options have no effect.

    Raises:
        CheckpointError: the class, or the value of a key, is not supported.
    """
    name, effective = _effective(config, origin, _NOISE_SCHEDULERS)
    _refuse_unless(name, "trained_betas", effective["trained_betas"], _UNSUPPORTED["trained_betas"], origin)
    return _noise(name, effective, origin)


def _effective(
    config: Mapping[str, Any], origin: str, classes: tuple[str, ...]
) -> tuple[str, dict[str, Any]]:
    """The scheduler's class, and the value of each of its keys: from the file, else the class's default."""
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in classes:
        problem = "ignores a checkpoint's noise schedule" if name == "IPNDMScheduler" else "is not supported"
        raise CheckpointError(
            f"{origin}: scheduler class {name!r} {problem}: name one of the classes "
            f"{', '.join(classes)} in scheduler_config.json, and in model_index.json if there is one"
        )
    defaults = _defaults(name)
    return name, defaults | {key: value for key, value in config.items() if key in defaults}


def _sampler(name: str, effective: Mapping[str, Any]) -> tuple[SamplerName, SchedulerClass]:
    """The sampler of a class. If a class implements two, ``algorithm_type`` selects one."""
    first, *others = [(sampler, entry) for sampler, entry in SCHEDULERS.items() if entry.name == name]
    for sampler, entry in others:
        [values] = [key.values for key in entry.keys if key.name == "algorithm_type"]
        if values is not None and _among(effective["algorithm_type"], values):
            return sampler, entry
    return first


def _field(name: str, key: Key, value: Any, origin: str) -> Any:
    """The value of a field of SamplerConfig for the value of its key."""
    if key.values is not None:
        _refuse_unless(name, key.name, value, tuple(key.values), origin)
        return key.values[value]
    if key.field == "lambda_min_clipped" and value == float("-inf"):
        return None
    return value


def _levels(
    name: str, entry: SchedulerClass, effective: Mapping[str, Any], config: Mapping[str, Any], origin: str
) -> str:
    """The noise levels that the flags select.

    For all but spaced levels, diffusers reads sigma_min and sigma_max even if they are no keys of the class.
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
    """True if a value is accepted, and of the same type: 1 does not match True."""
    return any(value == each and type(value) is type(each) for each in accepted)


def _refuse_unless(name: str, key: str, value: object, accepted: tuple[Any, ...], origin: str) -> None:
    """Raise CheckpointError unless a key's value is accepted; () accepts all values."""
    if accepted and not _among(value, accepted):
        raise CheckpointError(
            f"{origin}: {name} has {key} = {shown(repr_of(value), 100)}, which is not supported (expected "
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
        f"{origin}: {name} has {key} = {first['input']!r}, which is not supported ({first['msg']}): "
        f"change {key} in scheduler_config.json"
    )


def _defaults(name: str) -> dict[str, Any]:
    """Default of each key of a class in the installed diffusers."""
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in ("self", "kwargs")}
