from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sd2rt.engines.bundle.manifest import DepthInput
from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints.condition_configs import read_depth_input, read_low_resolution
from sd2rt.export.checkpoints.pipeline_configs import PipelineConfigs
from sd2rt.export.checkpoints.tiny_configs import SMALL, SMALL_DEPTH, SMALL_UPSCALER

PUBLISHED = DepthInput(size=(384, 384), resample="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def shown(**changes: Any) -> PipelineConfigs:
    assert SMALL_DEPTH.feature_extractor is not None
    return replace(SMALL_DEPTH, feature_extractor={**SMALL_DEPTH.feature_extractor, **changes})


def test_the_published_preprocessor() -> None:
    assert read_depth_input(PipelineConfigs.packaged("stable-diffusion-2-depth"), "it") == PUBLISHED
    assert read_depth_input(SMALL, "it") is None


def test_the_preprocessor_that_transformers_no_longer_has() -> None:
    older = {
        "do_normalize": True,
        "do_resize": True,
        "ensure_multiple_of": 1,
        "feature_extractor_type": "DPTFeatureExtractor",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "keep_aspect_ratio": False,
        "resample": 2,
        "size": 384,
    }
    assert read_depth_input(replace(SMALL_DEPTH, feature_extractor=older), "it") == PUBLISHED


def test_what_a_file_leaves_out_is_what_transformers_assumes() -> None:
    bare = read_depth_input(replace(SMALL_DEPTH, feature_extractor={}), "it")
    assert bare == PUBLISHED.model_copy(update={"resample": "bicubic"})


def test_every_number_reaches_its_field() -> None:
    depth = {**SMALL_DEPTH.part("depth_estimator"), "image_size": [320, 448]}
    depth_input = read_depth_input(
        replace(
            shown(
                size={"height": 320, "width": 448},
                resample=3,
                image_mean=[0.1, 0.2, 0.3],
                image_std=[1, 2, 3],
            ),
            depth_estimator=depth,
        ),
        "it",
    )
    assert depth_input == DepthInput(size=(448, 320), resample="bicubic", mean=(0.1, 0.2, 0.3), std=(1, 2, 3))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("keep_aspect_ratio", True),
        ("ensure_multiple_of", 32),
        ("do_pad", True),
        ("do_center_crop", True),
        ("do_resize", False),
        ("do_rescale", False),
        ("do_normalize", False),
        ("rescale_factor", 1.0),
        ("rescale_factor", None),
        ("resample", 0),
        ("resample", "bicubic"),
        ("resample", [2]),
        ("image_mean", 0.5),
        ("image_mean", [0.5, 0.5]),
        ("image_std", [0.5, 0.5, "0.5"]),
        ("image_std", [0.5, 0.5, 0.0]),
        ("image_mean", [0.5, 0.5, float("nan")]),
        ("size", 512),
        ("size", {"shortest_edge": 384}),
        ("size", None),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_key(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=f"has {key} = ") as refused:
        read_depth_input(shown(**{key: value}), "it")
    assert "\n" not in str(refused.value)
    assert "feature_extractor/preprocessor_config.json" in str(refused.value)


def test_how_an_upscalers_image_is_noised() -> None:
    condition = read_low_resolution(SMALL_UPSCALER, "it")
    assert condition is not None
    assert (
        condition.max_noise_level,
        condition.noise.beta_end,
        condition.noise.num_train_timesteps,
    ) == (350, 0.02, 1000)
    assert read_low_resolution(SMALL, "it") is None
    with pytest.raises(CheckpointError, match="low_res_scheduler: DDPMScheduler has trained_betas"):
        read_low_resolution(
            replace(
                SMALL_UPSCALER,
                low_res_scheduler={"_class_name": "DDPMScheduler", "trained_betas": [0.1, 0.2]},
            ),
            "it",
        )
