from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import CLIPTextModel, CLIPTokenizer, DPTForDepthEstimation

from sd2rt.engines.bundle.model_kinds import KINDS, ModelKind
from sd2rt.engines.demo.files import TOKENIZER
from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints import diffusers_folder, identify
from sd2rt.export.checkpoints.checkpoint import open_checkpoint
from sd2rt.export.checkpoints.pipeline_configs import PARTS, NetworkName, PipelineConfigs
from sd2rt.export.checkpoints.tiny_configs import SMALL, SMALL_TURBO, SMALLS
from sd2rt.export.checkpoints.variants import SUPPORTED, VARIANTS, find_variant
from sd2rt.export.checkpoints.variants import PublishedCheckpoint as Row
from sd2rt.export.testing.folder_writer import WEIGHT_FILES
from sd2rt.export.testing.random_weights import random_checkpoint

PROMPTS = (
    "",
    "a photo of an astronaut riding a horse on mars",
    "Hello, World!!",
    "don't   stop\n\tthe café ½ ÀÉ 日本語 🙂",
    "word " * 100,
)

FILES = [WEIGHT_FILES[part] for part in PARTS]

Damage = Callable[[], Path]
KindPath = Callable[[ModelKind], Path]


def refused(source: Path | str, match: str, **options: Any) -> str:
    """The one-line message with which open_checkpoint refuses a source; it has to match."""
    with pytest.raises(CheckpointError, match=match) as error:
        open_checkpoint(str(source), **options)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 3
    return str(error.value)


def edit(path: Path, **changes: Any) -> None:
    """Set, or with None remove, keys of a JSON file."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_what_a_folder_says(small_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(str(small_checkpoint))

    assert checkpoint.name == small_checkpoint.name
    assert checkpoint.release is None
    assert checkpoint.variant == "base"
    assert checkpoint.noise.prediction_type == "epsilon"
    assert checkpoint.sampler.name == "pndm"
    assert checkpoint.native_size == 64
    assert checkpoint.license == "CreativeML Open RAIL++-M"
    assert checkpoint.source == {
        file: hashlib.sha256((small_checkpoint / file).read_bytes()).hexdigest() for file in FILES
    }


def test_a_v_folder(small_v_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(str(small_v_checkpoint))
    assert (checkpoint.variant, checkpoint.noise.prediction_type) == ("v", "v_prediction")
    assert checkpoint.sampler.name == "ddim"


@pytest.mark.parametrize(
    ("kind", "release", "prediction", "sampler", "license"),
    [
        ("turbo", "2.1", "epsilon", "euler", "Stability AI Community License"),
        ("inpainting", "2.0", "epsilon", "pndm", "CreativeML Open RAIL++-M"),
        ("depth", "2.0", "epsilon", "pndm", "CreativeML Open RAIL++-M"),
        ("upscaler", "2.0", "v_prediction", "ddim", "CreativeML Open RAIL++-M"),
    ],
)
def test_a_folder_of_each_kind(
    kind: ModelKind, release: str, prediction: str, sampler: str, license: str, kind_folder: KindPath
) -> None:
    folder = kind_folder(kind)
    checkpoint = open_checkpoint(str(folder))

    assert (checkpoint.variant, checkpoint.release) == (kind, release)
    assert (checkpoint.noise.prediction_type, checkpoint.sampler.name) == (prediction, sampler)
    assert (checkpoint.native_size, checkpoint.license) == (64, license)
    assert (checkpoint.low_resolution is not None) == (kind == "upscaler")
    assert (checkpoint.depth_input is not None) == (kind == "depth")
    assert checkpoint.source.keys() == {WEIGHT_FILES[part] for part in SMALLS[kind].parts}
    assert checkpoint.unet().config.in_channels == KINDS[kind].in_channels
    # --variant may repeat what the evidence says, but not contradict it.
    row = next(row for row in SUPPORTED if row.kind == kind)
    assert open_checkpoint(str(folder), variant=row.name).variant == kind
    refused(folder, f"--variant 2.0-v means 2.0-v, but .* means {row.name}: leave", variant="2.0-v")


def test_what_an_upscaler_says(small_upscaler_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(str(small_upscaler_checkpoint))
    assert checkpoint.low_resolution is not None
    assert checkpoint.low_resolution.max_noise_level == 350
    assert (checkpoint.low_resolution.noise.beta_start, checkpoint.low_resolution.noise.beta_end) == (
        1e-4,
        0.02,
    )
    assert checkpoint.vae().config.scaling_factor == 0.08333
    assert checkpoint.parts.config("vae")["scaling_factor"] == 0.08333


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_depth_estimator_computes_what_transformers_loads(
    small_depth_checkpoint: Path, dtype: torch.dtype
) -> None:
    reference = DPTForDepthEstimation.from_pretrained(small_depth_checkpoint / "depth_estimator").eval()
    ours = open_checkpoint(str(small_depth_checkpoint)).depth_estimator(dtype)
    assert not ours.training
    assert not any(tensor.is_meta for tensor in (*ours.parameters(), *ours.buffers()))
    assert {parameter.dtype for parameter in ours.parameters()} == {dtype}
    images = torch.rand(1, 3, 384, 384, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected, found = reference(images).predicted_depth, ours.float()(images).predicted_depth
    assert torch.allclose(found, expected, rtol=0, atol=0 if dtype == torch.float32 else 0.5)


def test_a_checkpoint_without_a_depth_estimator_says_so(small_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="has no depth_estimator"):
        open_checkpoint(str(small_checkpoint)).depth_estimator()


def test_sd_turbo_is_told_by_its_name(folder_copy: Damage) -> None:
    folder = folder_copy()
    SMALL_TURBO.write(folder)
    # Without a name it is taken for a base model with its scheduler's sampler.
    unnamed = open_checkpoint(str(folder))
    assert (unnamed.variant, unnamed.release, unnamed.license) == ("base", None, "CreativeML Open RAIL++-M")
    assert (unnamed.sampler.name, unnamed.sampler.spacing) == ("euler", "trailing")
    said = open_checkpoint(str(folder), variant="sd-turbo")
    assert (said.variant, said.license) == ("turbo", "Stability AI Community License")

    edit(folder / "model_index.json", _name_or_path="stabilityai/sd-turbo")
    assert open_checkpoint(str(folder)).variant == "turbo"
    match = "--variant 2.1-base means 2.1-base, but _name_or_path in model_index.json sd-turbo means sd-turbo"
    refused(folder, match, variant="2.1-base")
    edit(folder / "model_index.json", _name_or_path=None)
    folder = folder.rename(folder.parent / "sd-turbo")
    assert open_checkpoint(str(folder)).variant == "turbo"


def test_a_name_does_not_make_another_model_sd_turbo(small_v_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sd-turbo"
    folder.symlink_to(small_v_checkpoint)
    assert open_checkpoint(str(folder)).variant == "v"
    folder.unlink()
    shutil.copytree(small_v_checkpoint, folder)
    refused(folder, "its name sd-turbo means sd-turbo, but .*prediction_type v_prediction.*: rename it")


def test_each_file_is_announced_before_it_is_hashed(small_checkpoint: Path) -> None:
    said: list[str] = []
    open_checkpoint(str(small_checkpoint), progress=said.append)
    assert len(said) == 3
    assert all(line.startswith("hashing ") for line in said)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_networks_come_ready_for_inference(small_checkpoint: Path, dtype: torch.dtype) -> None:
    checkpoint = open_checkpoint(str(small_checkpoint))
    for network in (checkpoint.text_encoder(dtype), checkpoint.unet(dtype), checkpoint.vae(dtype)):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert {parameter.dtype for parameter in network.parameters()} == {dtype}
        assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))


def test_weights_survive_their_file(folder_copy: Damage) -> None:
    folder = folder_copy()
    unet = open_checkpoint(str(folder)).unet()
    before = {key: tensor.clone() for key, tensor in unet.state_dict().items()}
    path = folder / WEIGHT_FILES["unet"]
    path.write_bytes(b"\0" * path.stat().st_size)
    assert all(torch.equal(tensor, before[key]) for key, tensor in unet.state_dict().items())


def test_the_text_encoder_computes_what_transformers_loads(small_checkpoint: Path) -> None:
    ids = torch.tensor([[49406, 320, 1125, 49407, *[0] * 73]])
    reference = CLIPTextModel.from_pretrained(small_checkpoint / "text_encoder").eval()
    ours = open_checkpoint(str(small_checkpoint)).text_encoder()
    with torch.no_grad():
        assert torch.equal(ours(ids).last_hidden_state, reference(ids).last_hidden_state)


def test_old_key_names_load(small_checkpoint: Path, legacy_folder: Path) -> None:
    current, old = open_checkpoint(str(small_checkpoint)), open_checkpoint(str(legacy_folder))
    for part in PARTS:
        expected, loaded = getattr(current, part)().state_dict(), getattr(old, part)().state_dict()
        assert expected.keys() == loaded.keys()
        assert all(torch.equal(expected[key], loaded[key]) for key in expected)


def test_a_vae_whose_attention_is_convolutions_loads(small_checkpoint: Path, folder_copy: Damage) -> None:
    folder = folder_copy()

    def convolve(tensors: dict[str, torch.Tensor]) -> None:
        for key in tensors:
            if "attentions" in key and tensors[key].ndim == 2:
                tensors[key] = tensors[key][:, :, None, None].clone()

    edit_weights(folder / WEIGHT_FILES["vae"], convolve)
    expected = open_checkpoint(str(small_checkpoint)).vae().state_dict()
    loaded = open_checkpoint(str(folder)).vae().state_dict()
    assert all(torch.equal(expected[key], loaded[key]) for key in expected)


def test_fp16_files_are_used_where_there_are_no_others(folder_copy: Damage, tmp_path: Path) -> None:
    folder = folder_copy()
    half = random_checkpoint(tmp_path / "half", configs=SMALL, seed=1, dtype=torch.float16)
    path = folder / WEIGHT_FILES["unet"]
    (half / WEIGHT_FILES["unet"]).rename(path.with_suffix(".fp16.safetensors"))
    assert "unet/diffusion_pytorch_model.safetensors" in open_checkpoint(str(folder)).source

    expected = load_file(path)
    path.unlink()
    checkpoint = open_checkpoint(str(folder))
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in checkpoint.source
    loaded = checkpoint.unet(torch.float32).state_dict()
    assert all(torch.equal(expected[key].half().float(), loaded[key]) for key in expected)


@pytest.mark.parametrize(
    ("stem", "index"),
    [
        ("diffusion_pytorch_model", "diffusion_pytorch_model.safetensors.index.json"),
        ("diffusion_pytorch_model.fp16", "diffusion_pytorch_model.safetensors.index.fp16.json"),
        ("diffusion_pytorch_model.fp16", "diffusion_pytorch_model.fp16.safetensors.index.json"),
    ],
)
def test_shards(folder_copy: Damage, stem: str, index: str) -> None:
    folder = folder_copy()
    path = folder / WEIGHT_FILES["unet"]
    tensors = load_file(path)
    path.unlink()
    shards = [f"{stem}-0000{number}-of-00002.safetensors" for number in (1, 2)]
    half = len(tensors) // 2
    for name, keys in zip(shards, (list(tensors)[:half], list(tensors)[half:]), strict=True):
        save_file({key: tensors[key] for key in keys}, path.parent / name)
    weight_map = {key: shards[number >= half] for number, key in enumerate(tensors)}
    (path.parent / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    checkpoint = open_checkpoint(str(folder))
    assert {f"unet/{name}" for name in shards} <= checkpoint.source.keys()
    assert all(torch.equal(tensors[key], t) for key, t in checkpoint.unet().state_dict().items())

    (path.parent / shards[1]).unlink()
    refused(folder, f"{shards[1]} is missing")
    edit(path.parent / index, weight_map={"a": "../../secret.safetensors"})
    refused(folder, "outside its folder")
    edit(path.parent / index, weight_map=[1])
    refused(folder, "weight_map")


def test_the_tokenizer_gives_the_ids_that_transformers_gives(small_checkpoint: Path) -> None:
    reference = CLIPTokenizer.from_pretrained(small_checkpoint / "tokenizer")
    ours = Tokenizer.from_str(open_checkpoint(str(small_checkpoint)).tokenizer_json())
    packaged = Tokenizer.from_file(str(TOKENIZER))

    for prompt in PROMPTS:
        expected = reference(prompt, padding="max_length", truncation=True, max_length=77).input_ids
        assert ours.encode(prompt).ids == expected
        assert packaged.encode(prompt).ids == expected


def test_a_tokenizer_with_more_tokens_than_the_table_is_refused(folder_copy: Damage) -> None:
    folder = folder_copy()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens(["<new-token>"])
    tokenizer.save_pretrained(folder / "tokenizer")
    with pytest.raises(CheckpointError, match=r"49409 tokens.*49408"):
        open_checkpoint(str(folder)).tokenizer_json()


def test_a_broken_tokenizer_is_refused(folder_copy: Damage) -> None:
    folder = folder_copy()
    (folder / "tokenizer" / "vocab.json").write_text("{")
    with pytest.raises(CheckpointError, match="CLIP tokenizer"):
        open_checkpoint(str(folder)).tokenizer_json()


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_key_is_named(folder_copy: Damage, part: NetworkName) -> None:
    folder = folder_copy()
    key = sorted(load_file(folder / WEIGHT_FILES[part]))[3]
    edit_weights(folder / WEIGHT_FILES[part], lambda tensors: tensors.__delitem__(key))
    refused(folder, f"{part} lacks the key {key}:")


@pytest.mark.parametrize("part", PARTS)
def test_an_unexpected_key_is_named(folder_copy: Damage, part: NetworkName) -> None:
    folder = folder_copy()
    edit_weights(folder / WEIGHT_FILES[part], lambda tensors: tensors.update(extra=torch.zeros(1)))
    refused(folder, f"{part} has the key extra,")


@pytest.mark.parametrize("part", PARTS)
def test_a_key_of_another_shape_is_named(folder_copy: Damage, part: NetworkName) -> None:
    folder = folder_copy()
    key = next(key for key, t in load_file(folder / WEIGHT_FILES[part]).items() if t.ndim == 2)
    edit_weights(folder / WEIGHT_FILES[part], lambda tensors: tensors.update({key: torch.zeros(3, 5)}))
    refused(folder, rf"{part} key {key} has shape \[3, 5\], expected \[")


def test_quantised_weights_are_refused(folder_copy: Damage) -> None:
    folder = folder_copy()
    edit_weights(
        folder / WEIGHT_FILES["unet"],
        lambda tensors: tensors.update({key: t.char() for key, t in tensors.items()}),
    )
    with pytest.raises(CheckpointError, match=r"int8.*quantised"):
        open_checkpoint(str(folder)).unet()


@pytest.mark.parametrize("part", PARTS)
def test_damaged_weights(folder_copy: Damage, part: NetworkName) -> None:
    path = folder_copy() / WEIGHT_FILES[part]
    folder, whole = path.parents[1], path.read_bytes()

    for cut in (len(whole) // 2, 100, 4):
        path.write_bytes(whole[:cut])
        refused(folder, "is truncated: it has|is not a safetensors file, or damaged at its start")
    path.write_bytes(b"")
    refused(folder, "is empty")
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")
    refused(folder, "git lfs pull")
    path.unlink()
    refused(folder, f"{path.name} is missing")
    stem = "pytorch_model" if path.stem == "model" else path.stem
    path.with_name(f"{stem}.bin").write_bytes(b"pickle")
    refused(folder, "only pickled weights")


def pickled(folder: Path) -> None:
    """Save a folder's weights as early diffusers did."""
    for path in folder.glob("*/*.safetensors"):
        stem = "pytorch_model" if path.stem == "model" else path.stem
        torch.save(load_file(path), path.with_name(f"{stem}.bin"))
        path.unlink()


@pytest.mark.parametrize("checkpoint", ["small_checkpoint", "small_depth_checkpoint"])
def test_pickled_weights_of_a_folder(checkpoint: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    original: Path = request.getfixturevalue(checkpoint)
    folder = Path(shutil.copytree(original, tmp_path / "folder"))
    pickled(folder)
    refused(folder, "has only pickled weights .*pass --allow-pickle")
    opened, expected = open_checkpoint(str(folder), allow_pickle=True), open_checkpoint(str(original))
    assert opened.variant == expected.variant
    assert all(name.endswith(".bin") for name in opened.source)
    for part in PARTS:
        found, wanted = getattr(opened, part)().state_dict(), getattr(expected, part)().state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_code_in_pickled_weights_of_a_folder_does_not_run(folder_copy: Damage, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = folder_copy()
    pickled(folder)
    torch.save({"conv_in.weight": Code()}, folder / "unet" / "diffusion_pytorch_model.bin")
    refused(folder, "contains more than weights", allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_keys_of_other_networks_are_left_out_with_a_note(folder_copy: Damage) -> None:
    folder = folder_copy()
    strays = {
        "text_encoder": {"text_projection.weight": (4, 4), "logit_scale": (), "vision_model.x": (2,)},
        "vae": {"loss.logvar": (), "loss.discriminator.main.0.weight": (4, 3)},
    }
    for part, keys in strays.items():
        path = folder / WEIGHT_FILES[part]  # type: ignore[index]
        save_file(load_file(path) | {key: torch.zeros(shape) for key, shape in keys.items()}, path)
    notes: list[str] = []
    checkpoint = open_checkpoint(str(folder), progress=notes.append)
    checkpoint.vae(), checkpoint.text_encoder()
    assert "vae: left out training losses (2 keys)" in notes
    assert any("the visual tower (1 key)" in note for note in notes)


@pytest.mark.parametrize("component", [*PARTS, "scheduler", "tokenizer"])
def test_a_folder_without_a_component(folder_copy: Damage, component: str) -> None:
    folder = folder_copy()
    (folder / component).rename(folder.parent / "elsewhere")
    refused(folder, f"lacks the folder {component}/")


@pytest.mark.parametrize(
    ("kind", "component", "file"),
    [("depth", "depth_estimator", "config.json"), ("upscaler", "low_res_scheduler", "scheduler_config.json")],
)
def test_a_folder_without_what_its_kind_has(
    kind: ModelKind, component: str, file: str, kind_folder: KindPath, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(kind_folder(kind), tmp_path / "copy"))
    (folder / component / file).unlink()
    refused(folder, f"{component}/{file} is missing")
    shutil.rmtree(folder / component)
    refused(folder, f"lacks the folder {component}/: a checkpoint of this kind has")


@pytest.mark.parametrize(
    ("kind", "file", "changes", "match"),
    [
        (
            "depth",
            "feature_extractor/preprocessor_config.json",
            {"keep_aspect_ratio": True},
            "keep_aspect_ratio",
        ),
        ("depth", "depth_estimator/config.json", {"image_size": 512}, "size = .*image_size"),
        ("upscaler", "low_res_scheduler/scheduler_config.json", {"trained_betas": [0.1]}, "trained_betas"),
        ("upscaler", "model_index.json", {"max_noise_level": 2000}, "max_noise_level is 2000"),
    ],
)
def test_a_condition_that_cannot_be_honoured_is_refused_before_a_file_is_hashed(
    kind: ModelKind, file: str, changes: dict[str, Any], match: str, kind_folder: KindPath, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(kind_folder(kind), tmp_path / "copy"))
    edit(folder / file, **changes)
    said: list[str] = []
    refused(folder, match, progress=said.append)
    assert said == []


def test_damaged_depth_weights(small_depth_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_depth_checkpoint, tmp_path / "copy"))
    path = folder / WEIGHT_FILES["depth_estimator"]
    whole, key = path.read_bytes(), "neck.convs.0.weight"
    edit_weights(path, lambda tensors: tensors.__delitem__(key))
    refused(folder, f"depth_estimator lacks the key {key}:")
    path.write_bytes(whole)
    edit_weights(path, lambda tensors: tensors.update(extra=torch.zeros(1)))
    refused(folder, "depth_estimator has the key extra,")
    path.write_bytes(whole)
    edit_weights(path, lambda tensors: tensors.update({key: torch.zeros(3, 5)}))
    refused(folder, rf"depth_estimator key {key} has shape \[3, 5\], expected \[")
    path.write_bytes(whole[: len(whole) // 2])
    refused(folder, "is truncated: it has|is not a safetensors file, or damaged at its start")
    path.unlink()
    refused(folder, "model.safetensors is missing")


def test_a_depth_estimator_that_is_none(small_depth_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_depth_checkpoint, tmp_path / "copy"))
    edit(folder / "depth_estimator" / "config.json", readout_type="add")
    refused(folder, "the configuration of depth_estimator does not describe an SD2 network")


@pytest.mark.parametrize("kind", ["inpainting", "depth", "upscaler"])
def test_a_unet_of_another_kind_is_refused(kind: ModelKind, kind_folder: KindPath, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(kind_folder(kind), tmp_path / "copy"))
    edit(folder / "unet" / "config.json", in_channels=4, num_class_embeds=None)
    refused(folder, "unet key conv_in.weight has shape|needs a VAE of 8 pixels per latent, but vae has 4")
    edit(folder / "unet" / "config.json", in_channels="many")
    refused(folder, "its UNet's many input channels")


@pytest.mark.parametrize(
    "file",
    ["unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"],
)
def test_a_folder_without_a_configuration(folder_copy: Damage, file: str) -> None:
    folder = folder_copy()
    (folder / file).write_text("{broken")
    refused(folder, f"{file} is not valid JSON")
    (folder / file).write_text("[]")
    refused(folder, f"{file} holds a JSON list")
    (folder / file).unlink()
    refused(folder, f"{file} is missing")


@pytest.mark.parametrize(
    ("file", "changes", "match"),
    [
        ("unet/config.json", {"sample_size": [64, 64]}, "sample_size"),
        ("unet/config.json", {"block_out_channels": "wide"}, "configuration of unet"),
        ("unet/config.json", {"norm_num_groups": 5}, "configuration of unet"),
        ("unet/config.json", {"attention_head_dim": [2, 3]}, "configuration of unet"),
        ("unet/config.json", {"layers_per_block": 2}, "unet lacks"),
        ("unet/config.json", {"cross_attention_dim": 64}, "32 wide with 3 layers, .* UNet attends to 64"),
        ("vae/config.json", {"latent_channels": 16}, "out_channels 4, but vae has latent_channels 16"),
        ("vae/config.json", {"block_out_channels": 4}, "block_out_channels"),
        ("text_encoder/config.json", {"num_attention_heads": 0}, "configuration of text_encoder"),
        ("text_encoder/config.json", {"num_attention_heads": 5}, "configuration of text_encoder"),
        ("text_encoder/config.json", {"hidden_act": "what"}, "configuration of text_encoder"),
        ("scheduler/scheduler_config.json", {"_class_name": "IPNDMScheduler"}, "IPNDMScheduler"),
        (
            "scheduler/scheduler_config.json",
            {"thresholding": True, "_class_name": "DDIMScheduler"},
            "thresholding",
        ),
    ],
)
def test_a_configuration_that_cannot_be_honoured(
    folder_copy: Damage, file: str, changes: dict[str, Any], match: str
) -> None:
    folder = folder_copy()
    edit(folder / file, **changes)
    if "_class_name" in changes:
        # Which diffusers follows.
        edit(folder / "model_index.json", scheduler=["diffusers", changes["_class_name"]])
    refused(folder, match)


@pytest.mark.parametrize(
    ("pipeline", "unet", "match"),
    [
        ("StableDiffusionXLPipeline", {}, "an SDXL checkpoint"),
        ("StableDiffusionXLImg2ImgPipeline", {}, "an SDXL checkpoint"),
        ("StableDiffusion3Pipeline", {}, "a Stable Diffusion 3 checkpoint"),
        ("FluxPipeline", {}, "a Flux checkpoint"),
        ("StableDiffusionControlNetPipeline", {}, "a ControlNet pipeline"),
        ("OnnxStableDiffusionPipeline", {}, "an ONNX export"),
        ("StableDiffusionInpaintPipeline", {"in_channels": 9}, "unet key conv_in.weight has shape"),
        ("StableDiffusionInpaintPipeline", {"in_channels": 7}, "not a Stable Diffusion 2 .*7 input channels"),
        (
            "StableUnCLIPImg2ImgPipeline",
            {"class_embed_type": "projection"},
            "2.1-unclip .*does not support yet",
        ),
        ("StableDiffusionPipeline", {"in_channels": 9}, "unet key conv_in.weight has shape"),
        ("SomeOtherPipeline", {}, "a pipeline of another kind .*SomeOtherPipeline.*not a Stable Diffusion 2"),
        ("LatentConsistencyModelPipeline", {"time_cond_proj_dim": 256}, "a latent consistency model"),
    ],
)
def test_other_pipelines_are_named(
    folder_copy: Damage, pipeline: str, unet: dict[str, Any], match: str
) -> None:
    folder = folder_copy()
    edit(folder / "model_index.json", _class_name=pipeline)
    edit(folder / "unet" / "config.json", **unet)
    refused(folder, match)


@pytest.mark.parametrize(
    "pipeline",
    [
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipelineLegacy",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionDepth2ImgPipeline",
        "StableDiffusionPAGPipeline",
        "LatentConsistencyModelPipeline",
        "DiffusionPipeline",
    ],
)
def test_the_inputs_of_the_unet_decide_not_the_class_of_the_pipeline(
    folder_copy: Damage, pipeline: str
) -> None:
    folder = folder_copy()
    edit(folder / "model_index.json", _class_name=pipeline)
    assert open_checkpoint(str(folder)).variant == "base"


def test_exports_and_engines_may_lie_beside_the_weights(folder_copy: Damage) -> None:
    folder = folder_copy()
    for name in ("unet/model.onnx", "vae/unet.engine", "model.plan"):
        (folder / name).write_bytes(b"\0")
    assert open_checkpoint(str(folder)).variant == "base"


@pytest.mark.parametrize("infix", [".bf16", ".non_ema", ".ema-pruned"])
def test_files_whose_names_are_not_looked_for_are_named(folder_copy: Damage, infix: str) -> None:
    folder = folder_copy()
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name(f"diffusion_pytorch_model{infix}.safetensors"))
    refused(folder, rf"unet has diffusion_pytorch_model\{infix}\.safetensors.*rename")


@pytest.mark.parametrize(
    ("value", "dtype", "match"),
    [
        (float("nan"), torch.float32, "1 of .* values that are not finite"),
        (float("-inf"), torch.float16, "1 of .* values that are not finite"),
        (70000.0, torch.float16, "a value of 7e\\+04, too large for float16: build it with --precision fp32"),
    ],
)
def test_weights_that_are_not_finite(
    folder_copy: Damage, value: float, dtype: torch.dtype, match: str
) -> None:
    folder = folder_copy()
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_out.weight"].view(-1)[3] = value
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint(str(folder)).unet(dtype)
    assert "conv_out.weight" in str(caught.value)


CLIP_L = {"hidden_size": 768, "num_hidden_layers": 12}


@pytest.mark.parametrize(
    ("text_encoder", "attends", "match"),
    [
        (CLIP_L, 768, r"a Stable Diffusion 1 checkpoint \(cross_attention_dim 768\)"),
        (
            CLIP_L,
            1024,
            r"text encoder is 768 wide with 12 layers \(CLIP-L, Stable Diffusion 1's\), but the UNet attends to "
            "1024: ",
        ),
        (
            {"hidden_size": 1024, "num_hidden_layers": 23},
            768,
            r"text encoder is 1024 wide with 23 layers \(OpenCLIP ViT-H.*, but the UNet attends to 768: ",
        ),
        (
            {"hidden_size": 1280, "num_hidden_layers": 32},
            1024,
            r"1280 wide with 32 layers \(OpenCLIP ViT-bigG",
        ),
        (
            {"hidden_size": 1024, "num_hidden_layers": 24},
            1024,
            "1024 wide with 24 layers, but the UNet, which attends to 1024, was trained on .* layer 23",
        ),
        ({"hidden_size": 1024, "num_hidden_layers": 12}, 1024, "1024 wide with 12 layers, but the UNet"),
    ],
)
def test_a_text_encoder_that_is_not_the_unets_is_refused(
    folder_copy: Damage, text_encoder: dict[str, int], attends: int, match: str
) -> None:
    folder = folder_copy()
    edit(folder / "text_encoder" / "config.json", **text_encoder)
    edit(folder / "unet" / "config.json", cross_attention_dim=attends)
    refused(folder, match)


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"bundle.json": "{}"}, "an sd2rt bundle, not a checkpoint"),
        ({"unet/model.onnx": ""}, "an ONNX export"),
        ({"unet.engine": ""}, "TensorRT"),
        ({"unet/model.plan": ""}, "TensorRT"),
        ({"pytorch_lora_weights.safetensors": ""}, "a LoRA"),
        ({"adapter_config.json": "{}"}, "a LoRA"),
        ({"config.json": '{"_class_name": "AutoencoderKL"}'}, "an? AutoencoderKL alone"),
        ({"config.json": '{"_class_name": "ControlNetModel"}'}, "a ControlNetModel alone"),
        ({"config.json": '{"architectures": ["CLIPTextModel"]}'}, "a CLIPTextModel alone"),
        ({"v2-1_768-ema-pruned.safetensors": ""}, "give the file itself.*v2-1_768-ema-pruned.safetensors"),
        ({}, "no model_index.json"),
    ],
)
def test_other_folders_are_named(tmp_path: Path, files: dict[str, str], match: str) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    refused(tmp_path, match)


@pytest.mark.parametrize(("variant", "release"), [("2.0-base", "2.0"), ("2.1-base", "2.1"), (None, None)])
def test_a_variant_tells_a_folders_release(
    small_checkpoint: Path, variant: str | None, release: str | None
) -> None:
    assert open_checkpoint(str(small_checkpoint), variant=variant).release == release


def test_a_variant_does_not_overrule_the_folder(small_checkpoint: Path, small_v_checkpoint: Path) -> None:
    refused(small_checkpoint, "--variant 2.1-v means 2.1-v, but prediction_type epsilon", variant="2.1-v")
    refused(small_v_checkpoint, "--variant 2.0-base.*v_prediction", variant="2.0-base")
    refused(small_checkpoint, "2.0-base, 2.0-v, 2.1-base, 2.1-v", variant="xl")
    refused(
        small_checkpoint, "--variant 2.0-depth means 2.0-depth, but its UNet's 4 input", variant="2.0-depth"
    )
    refused(small_checkpoint, "--variant 2.1-unclip .*does not support yet", variant="2.1-unclip")


def _publish(monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> None:
    table = tuple(replace(row, **changes) if row.name == name else row for row in VARIANTS)
    for module in (identify, diffusers_folder):
        monkeypatch.setattr(module, "VARIANTS", table)


def test_a_published_hash_tells_a_folders_release(
    small_v_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256((small_v_checkpoint / WEIGHT_FILES["unet"]).read_bytes()).hexdigest()
    _publish(monkeypatch, "2.1-v", unet_files={digest: 1})
    assert open_checkpoint(str(small_v_checkpoint)).release == "2.1"
    refused(
        small_v_checkpoint, f"--variant 2.0-v means 2.0-v, but its SHA-256 {digest[:12]}", variant="2.0-v"
    )


def test_a_published_hash_with_anothers_scheduler_is_refused(
    folder_copy: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_copy()
    digest = hashlib.sha256((folder / WEIGHT_FILES["unet"]).read_bytes()).hexdigest()
    _publish(monkeypatch, "2.1-v", unet_files={digest: 1})
    refused(folder, "its SHA-256 .* means 2.1-v, but prediction_type epsilon")


def test_what_does_not_exist(tmp_path: Path) -> None:
    refused(tmp_path / "gone.safetensors", "does not exist")
    refused(tmp_path / "gone", "does not exist")
    refused("gone", "does not exist.*or one of demo, demo-v")
    refused("./models/gone", "does not exist")
    refused("models/gone.safetensors", "does not exist")
    refused("~nobody-of-this-name/gone", "does not exist")
    refused("a prompt, by mistake " * 50, "does not exist")


def test_configs_are_for_single_files(small_checkpoint: Path) -> None:
    refused(small_checkpoint, "not a single file", config=small_checkpoint)
    refused("demo-x4", "not a single file", config=small_checkpoint)


def test_the_packaged_configurations_are_those_of_the_releases() -> None:
    for row in SUPPORTED:
        configs = PipelineConfigs.packaged(str(row.configs))
        assert row.kind is not None
        kind = KINDS[row.kind]
        assert configs.native_size == row.native_size == (768 if row.kind == "v" else 512)
        assert configs.unet["in_channels"] == row.in_channels == kind.in_channels
        assert configs.unet["cross_attention_dim"] == configs.text_encoder["hidden_size"] == 1024
        assert configs.text_encoder["num_hidden_layers"] == 23
        assert configs.vae_factor == kind.vae_factor
        assert configs.scheduler.get("prediction_type", "epsilon") == (
            "v_prediction" if row.kind in ("v", "upscaler") else "epsilon"
        )
        assert configs.scheduler.get("prediction_type", "epsilon") in row.predictions
        assert find_variant(row.name) is row


def test_what_the_published_variants_differ_in() -> None:
    base, turbo, inpainting, depth, upscaler = (
        PipelineConfigs.packaged(name)
        for name in (
            "stable-diffusion-2-base",
            "sd-turbo",
            "stable-diffusion-2-inpainting",
            "stable-diffusion-2-depth",
            "stable-diffusion-x4-upscaler",
        )
    )
    assert base.unet == turbo.unet
    for other, channels in ((inpainting, 9), (depth, 5)):
        assert {**other.unet, "in_channels": 4} == base.unet
        assert other.unet["in_channels"] == channels
        assert (other.vae, other.text_encoder) == (base.vae, base.text_encoder)
    assert depth.parts == (*PARTS, "depth_estimator")
    assert depth.part("depth_estimator")["image_size"] == 384
    assert depth.feature_extractor is not None
    assert upscaler.parts == PARTS
    assert (upscaler.vae["scaling_factor"], upscaler.max_noise_level) == (0.08333, 350)
    assert upscaler.text_encoder == base.text_encoder


@pytest.mark.parametrize("row", SUPPORTED, ids=lambda row: row.name)
def test_small_configurations_differ_from_the_published_ones_in_size_alone(row: Row) -> None:
    assert row.kind is not None
    published, small = PipelineConfigs.packaged(str(row.configs)), SMALLS[row.kind]
    if row.kind == "v":
        # SMALL_V has SMALL's networks with another scheduler.
        base = PipelineConfigs.packaged("stable-diffusion-2-1-base")
        published = replace(base, scheduler=published.scheduler)
    assert small.parts == published.parts
    for part in small.parts:
        assert small.part(part).keys() == published.part(part).keys()
        assert [len(v) for v in small.part(part).values() if isinstance(v, list)] == [
            len(v) for v in published.part(part).values() if isinstance(v, list)
        ]
    assert small.unet["down_block_types"] == published.unet["down_block_types"]
    assert small.scheduler.get("prediction_type") == published.scheduler.get("prediction_type")
    assert (small.feature_extractor, small.low_res_scheduler, small.max_noise_level) == (
        published.feature_extractor,
        published.low_res_scheduler,
        published.max_noise_level,
    )


def test_no_two_checkpoints_share_a_name_or_a_hash() -> None:
    for values in (
        [row.name for row in VARIANTS],
        [row.hub_id for row in VARIANTS],
        [stem for row in VARIANTS for stem in row.file_stems],
        [digest for row in VARIANTS for digest in (*row.files, *row.unet_files)],
    ):
        assert len(values) == len(set(values))
    assert all(len(digest) == 64 for row in VARIANTS for digest in (*row.files, *row.unet_files))


def test_importing_the_package_and_its_table_loads_no_torch() -> None:
    code = "import sys, sd2rt.export, sd2rt.export.checkpoints.variants; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_that_are_not_looked_for(folder_copy: Damage) -> None:
    path = folder_copy() / WEIGHT_FILES["unet"]
    folder = path.parents[1]
    for infix in ("bf16", "non_ema"):
        other = path.rename(path.with_name(f"diffusion_pytorch_model.{infix}.safetensors"))
        refused(folder, rf"unet has {other.name}, but neither .*: rename the file")
        other.rename(path)
    shard = path.rename(path.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    refused(folder, rf"has the shard {shard.name}, but not diffusion_pytorch_model.safetensors.index.json")
