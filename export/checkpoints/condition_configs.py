"""What a checkpoint's files say of the images that its denoiser is shown: how they are noised, or measured."""

from __future__ import annotations

import math
from typing import Any, Literal

from sd2rt.engines.bundle.manifest import DepthInput, LowResolution
from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints.pipeline_configs import Config, PipelineConfigs
from sd2rt.export.checkpoints.scheduler_config import read_noise

# What transformers' DPTImageProcessor assumes for the keys that a file leaves out. Files of its predecessor,
# DPTFeatureExtractor, have the same keys.
_DEFAULTS: Config = {
    "size": {"height": 384, "width": 384},
    "resample": 3,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}

_RESAMPLES: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}

# Only these values are honoured; the first is what the key means where it is left out.
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
    """Raise CheckpointError for what the two readers below refuse: before anything is hashed."""
    read_low_resolution(configs, origin)
    read_depth_input(configs, origin)


def read_low_resolution(configs: PipelineConfigs, origin: str) -> LowResolution | None:
    """How an upscaler's image is noised; None for a pipeline that has no such image.

    Raises CheckpointError naming what cannot be honoured.
    """
    if configs.low_res_scheduler is None or configs.max_noise_level is None:
        return None
    noise = read_noise(configs.low_res_scheduler, f"{origin}, low_res_scheduler")
    return LowResolution(noise=noise, max_noise_level=configs.max_noise_level)


def read_depth_input(configs: PipelineConfigs, origin: str) -> DepthInput | None:
    """How an image is shown to the depth estimator; None for a pipeline that has none.

    Raises CheckpointError naming the key that cannot be honoured.
    """
    if configs.feature_extractor is None or configs.depth_estimator is None:
        return None
    given = _DEFAULTS | configs.feature_extractor
    for key, accepted in _FIXED.items():
        value = given.get(key, accepted[0])
        if not any(value == fixed and type(value) is type(fixed) for fixed in accepted):
            raise _refusal(origin, key, value, repr(accepted[0]))
    factor = given.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or abs(factor * 255 - 1) > 1e-6:
        raise _refusal(origin, "rescale_factor", factor, repr(1 / 255))
    resample = given["resample"]
    if not isinstance(resample, int) or resample not in _RESAMPLES:
        raise _refusal(origin, "resample", resample, "2 (bilinear) or 3 (bicubic)")
    for key in ("image_mean", "image_std"):
        numbers = given[key]
        if not isinstance(numbers, list) or len(numbers) != 3 or not all(map(_is_number, numbers)):
            raise _refusal(origin, key, numbers, "three numbers")
    if not all(number > 0 for number in given["image_std"]):
        raise _refusal(origin, "image_std", given["image_std"], "three positive numbers")
    size, made_for = _sides(given["size"]), _sides(configs.depth_estimator.get("image_size", 384))
    if size is None or size != made_for:
        raise _refusal(origin, "size", given["size"], f"the depth estimator's image_size {made_for}")
    return DepthInput(
        size=size,
        resample=_RESAMPLES[resample],
        mean=tuple(given["image_mean"]),
        std=tuple(given["image_std"]),
    )


def _sides(size: object) -> tuple[int, int] | None:
    """Width and height from the forms that these files have: a number, height and width, or their names."""
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


def _refusal(origin: str, key: str, value: object, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"{origin}: the depth estimator's preprocessor has {key} = {value!r}, which sd2rt does not have (it "
        f"wants {wanted}): change {key} in feature_extractor/preprocessor_config.json"
    )
