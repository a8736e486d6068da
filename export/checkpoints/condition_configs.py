"""Read the configuration of image conditions: noise for an upscaler's image, preprocessing for depth estimation."""

from __future__ import annotations

import math
from typing import Any, Literal

from sd2rt.engines.bundle.manifest import DepthInput, LowResolution
from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints.pipeline_configs import Config, PipelineConfigs
from sd2rt.export.checkpoints.scheduler_config import read_noise

# Defaults of transformers' DPTImageProcessor for missing keys. Files of its predecessor, DPTFeatureExtractor, have
# the same keys.
_DEFAULTS: Config = {
    "size": {"height": 384, "width": 384},
    "resample": 3,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}

_RESAMPLES: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}

# Only these values are supported; the first is the default of a missing key.
_FIXED: dict[str, tuple[Any, ...]] = {
    "do_resize": (True,),
    "do_rescale": (True,),
    "do_normalize": (True,),
    "do_center_crop": (False, None),
    "do_pad": (False, None),
    "keep_aspect_ratio": (False, None),
    "ensure_multiple_of": (1, None),
}


def check_conditions(configs: PipelineConfigs, origin: str) -> None:
    """Raise CheckpointError early, before files are hashed, for configurations that the two readers below refuse."""
    read_low_resolution(configs, origin)
    read_depth_input(configs, origin)


def read_low_resolution(configs: PipelineConfigs, origin: str) -> LowResolution | None:
    """Noise schedule and limit for an upscaler's input image; None for other pipelines.

    Raises:
        CheckpointError: the scheduler's class or one of its keys is not supported.
    """
    if configs.low_res_scheduler is None or configs.max_noise_level is None:
        return None
    noise = read_noise(configs.low_res_scheduler, f"{origin}, low_res_scheduler")
    return LowResolution(noise=noise, max_noise_level=configs.max_noise_level)


def read_depth_input(configs: PipelineConfigs, origin: str) -> DepthInput | None:
    """Preprocessing of images for the depth estimator; None for a pipeline without one.

    Raises:
        CheckpointError: a key has a value that is not supported.
    """
    if configs.feature_extractor is None or configs.depth_estimator is None:
        return None
    config = _DEFAULTS | configs.feature_extractor
    for key, accepted in _FIXED.items():
        value = config.get(key, accepted[0])
        if not any(value == fixed and type(value) is type(fixed) for fixed in accepted):
            raise _refusal(origin, key, value, repr(accepted[0]))
    factor = config.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or abs(factor * 255 - 1) > 1e-6:
        raise _refusal(origin, "rescale_factor", factor, repr(1 / 255))
    resample = config["resample"]
    if not isinstance(resample, int) or resample not in _RESAMPLES:
        raise _refusal(origin, "resample", resample, "2 (bilinear) or 3 (bicubic)")
    for key in ("image_mean", "image_std"):
        numbers = config[key]
        if not isinstance(numbers, list) or len(numbers) != 3 or not all(map(_is_number, numbers)):
            raise _refusal(origin, key, numbers, "three numbers")
    if not all(number > 0 for number in config["image_std"]):
        raise _refusal(origin, "image_std", config["image_std"], "three positive numbers")
    size, expected_size = _sides(config["size"]), _sides(configs.depth_estimator.get("image_size", 384))
    if size is None or size != expected_size:
        raise _refusal(origin, "size", config["size"], f"the depth estimator's image_size {expected_size}")
    return DepthInput(
        size=size,
        resample=_RESAMPLES[resample],
        mean=tuple(config["image_mean"]),
        std=tuple(config["image_std"]),
    )


def _sides(size: object) -> tuple[int, int] | None:
    """Width and height from any form of ``size`` in these files: a number, a list or a dictionary."""
    if isinstance(size, dict) and size.keys() == {"height", "width"}:
        size = [size["height"], size["width"]]
    if _is_side(size):
        size = [size, size]
    if isinstance(size, list) and len(size) == 2 and all(map(_is_side, size)):
        return size[1], size[0]
    return None


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _refusal(origin: str, key: str, value: object, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{origin}: the depth estimator's preprocessor has {key} = {value!r}, which is not supported "
        f"(expected {expected}): change {key} in feature_extractor/preprocessor_config.json"
    )
