from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest

from sd2rt.engines.bundle.model_kinds import ModelKind
from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints.pipeline_configs import FEATURE_EXTRACTOR_FILE, PipelineConfigs, check_classes
from sd2rt.export.checkpoints.scheduler_config import read_scheduler
from sd2rt.export.checkpoints.scheduler_table import SCHEDULERS
from sd2rt.export.checkpoints.tiny_configs import SMALL, SMALL_DEPTH, SMALL_UPSCALER, SMALLS


def edit(path: Path, **changes: Any) -> None:
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as error:
        PipelineConfigs.read(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", SMALLS)
def test_what_is_written_is_read(kind: ModelKind, tmp_path: Path) -> None:
    SMALLS[kind].write(tmp_path)
    assert PipelineConfigs.read(tmp_path) == SMALLS[kind]


@pytest.mark.parametrize(
    ("kind", "pipeline", "components"),
    [
        ("base", "StableDiffusionPipeline", set()),
        ("v", "StableDiffusionPipeline", set()),
        ("turbo", "StableDiffusionPipeline", set()),
        ("inpainting", "StableDiffusionInpaintPipeline", set()),
        ("depth", "StableDiffusionDepth2ImgPipeline", {"depth_estimator", "feature_extractor"}),
        ("upscaler", "StableDiffusionUpscalePipeline", {"low_res_scheduler"}),
    ],
)
def test_a_folder_names_its_pipeline(
    kind: ModelKind, pipeline: str, components: set[str], tmp_path: Path
) -> None:
    SMALLS[kind].write(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == pipeline
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert folders == {"text_encoder", "unet", "vae", "scheduler", *components}


@pytest.mark.parametrize("factor", [None, 0.18215])
def test_an_upscalers_latents_are_scaled_as_diffusers_scales_them(
    factor: float | None, tmp_path: Path
) -> None:
    SMALL_UPSCALER.write(tmp_path)
    edit(tmp_path / "vae" / "config.json", scaling_factor=factor)
    assert PipelineConfigs.read(tmp_path).vae["scaling_factor"] == 0.08333


def test_how_noisy_an_upscalers_image_may_be(tmp_path: Path) -> None:
    SMALL_UPSCALER.write(tmp_path)
    index = tmp_path / "model_index.json"
    edit(index, max_noise_level=100)
    assert PipelineConfigs.read(tmp_path).max_noise_level == 100
    edit(index, max_noise_level=None)
    assert PipelineConfigs.read(tmp_path).max_noise_level == 350
    for level in (1000, -1, 20.5, True, "many"):
        edit(index, max_noise_level=level)
        refused(tmp_path, f"max_noise_level is {level!r}, but the UNet embeds the levels 0 to 999")
    index.unlink()
    assert PipelineConfigs.read(tmp_path).max_noise_level == 350
    edit(tmp_path / "unet" / "config.json", num_class_embeds="many")
    refused(tmp_path, "num_class_embeds is 'many'")


def test_a_depth_folder_without_numbers_for_its_images_has_the_published_ones(tmp_path: Path) -> None:
    SMALL_DEPTH.write(tmp_path)
    (tmp_path / FEATURE_EXTRACTOR_FILE).unlink()
    assert PipelineConfigs.read(tmp_path).feature_extractor == SMALL_DEPTH.feature_extractor


def test_a_vae_of_another_kind(tmp_path: Path) -> None:
    SMALL_UPSCALER.write(tmp_path)
    edit(tmp_path / "vae" / "config.json", block_out_channels=[8, 16, 24, 24])
    refused(tmp_path, "7 input channels and needs a VAE of 4 pixels per latent, but vae has 8")


@pytest.mark.parametrize(
    ("version", "sample_size", "expected"),
    [("0.8.0", 32, 512), ("0.8.0", 96, 768), ("0.10.0.dev0", 32, 256), (None, 32, 256)],
)
def test_files_from_before_diffusers_0_9_understate_their_size(
    version: str | None, sample_size: int, expected: int, tmp_path: Path
) -> None:
    SMALLS["inpainting"].write(tmp_path)
    edit(tmp_path / "unet" / "config.json", sample_size=sample_size, _diffusers_version=version)
    assert PipelineConfigs.read(tmp_path).native_size == expected


CLASSES = sorted({entry.name for entry in SCHEDULERS.values()})
SETTINGS: list[dict[str, Any]] = [
    {},
    {"timestep_spacing": "trailing", "use_karras_sigmas": True},
    {"solver_order": 3, "lower_order_final": False, "skip_prk_steps": True},
    {"rescale_betas_zero_snr": True, "set_alpha_to_one": False},
]


def folder_with_scheduler(folder: Path, named: object, config: dict[str, Any]) -> Path:
    SMALL.write(folder)
    index = json.loads((folder / "model_index.json").read_text())
    if named is None:
        del index["scheduler"]
    else:
        index["scheduler"] = named
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("named", CLASSES)
@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_the_index_names_the_schedulers_class(named: str, number: int, tmp_path: Path) -> None:
    """As diffusers' pipelines create it, from a file of any class; both refuse or agree key by key."""
    for writer in CLASSES:
        config = {**SMALL.scheduler, "clip_sample": False, **SETTINGS[number], "_class_name": writer}
        folder = folder_with_scheduler(tmp_path, ["diffusers", named], config)
        created = getattr(diffusers, named).from_pretrained(folder, subfolder="scheduler")
        expected: Any = dict(created.config)
        try:
            expected = read_scheduler(expected, "it")
        except CheckpointError:
            with pytest.raises(CheckpointError, match=named):
                read_scheduler(PipelineConfigs.read(folder).scheduler, "it")
        else:
            assert read_scheduler(PipelineConfigs.read(folder).scheduler, "it") == expected, writer
            assert SCHEDULERS[expected[1].name].name == named


def test_without_an_index_the_file_names_the_class(tmp_path: Path) -> None:
    config = {**SMALL.scheduler, "clip_sample": False, "_class_name": "EulerDiscreteScheduler"}
    folder = folder_with_scheduler(tmp_path, None, config)
    assert read_scheduler(PipelineConfigs.read(folder).scheduler, "it")[1].name == "euler"


@pytest.mark.parametrize(
    "named", [[None, None], "EulerDiscreteScheduler", ["diffusers"], {}, ["a", "b", "c"]]
)
def test_an_index_without_a_scheduler(named: object, tmp_path: Path) -> None:
    folder = folder_with_scheduler(tmp_path, named, SMALL.scheduler)
    with pytest.raises(
        CheckpointError, match=r"model_index\.json has the scheduler .*, expected a library and a class"
    ):
        PipelineConfigs.read(folder)


@pytest.mark.parametrize(
    ("component", "named"),
    [
        ("vae", ["diffusers", "AutoencoderTiny"]),
        ("vae", [None, None]),
        ("unet", ["diffusers", "UNetMotionModel"]),
        ("text_encoder", ["transformers", "CLIPTextModelWithProjection"]),
        ("tokenizer", ["transformers", "T5Tokenizer"]),
        ("tokenizer", "CLIPTokenizer"),
    ],
)
def test_other_classes_in_the_index(component: str, named: object, tmp_path: Path) -> None:
    SMALL.write(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    check_classes("it", index, SMALL.unet)
    with pytest.raises(CheckpointError, match=rf"^it: model_index.json has {component} = .*, expected "):
        check_classes("it", {**index, component: named}, SMALL.unet)
