from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file, save_file

from sd2rt.engines.bundle.model_kinds import ModelKind
from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints import identify, single_file
from sd2rt.export.checkpoints.checkpoint import open_checkpoint
from sd2rt.export.checkpoints.ldm.keys import ema_key, ldm_layout
from sd2rt.export.checkpoints.ldm.tensor import PREFIXES
from sd2rt.export.checkpoints.measured_prediction import correlation_with_noise, likely_prediction
from sd2rt.export.checkpoints.networks import skeleton
from sd2rt.export.checkpoints.pipeline_configs import PARTS, NetworkName, PipelineConfigs
from sd2rt.export.checkpoints.scheduler_config import read_scheduler
from sd2rt.export.checkpoints.tiny_configs import SMALL, SMALL_TURBO, SMALL_V, SMALLS
from sd2rt.export.checkpoints.variants import SUPPORTED, VARIANTS
from sd2rt.export.checkpoints.weight_file import sha256
from sd2rt.export.testing.random_weights import RandomWeights, random_checkpoint

Tensors = dict[str, torch.Tensor]
KindPath = Callable[[ModelKind], Path]

KINDS_OF_FILES: list[ModelKind] = ["turbo", "inpainting", "depth", "upscaler"]
UNET = "model.diffusion_model."


def refused(path: Path, match: str, **options: Any) -> str:
    with pytest.raises(CheckpointError, match=match) as error:
        open_checkpoint(str(path), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def weights(path: Path, parts: Sequence[NetworkName] = PARTS, **options: Any) -> dict[NetworkName, Tensors]:
    checkpoint = open_checkpoint(str(path), **options)
    return {part: getattr(checkpoint, part)().state_dict() for part in parts}


def equal(one: dict[NetworkName, Tensors], other: dict[NetworkName, Tensors]) -> bool:
    return one.keys() == other.keys() and all(
        one[part].keys() == other[part].keys()
        and all(torch.equal(one[part][key], other[part][key]) for key in one[part])
        for part in one
    )


def edited(
    path: Path, target: Path, change: Callable[[Tensors], None], metadata: dict[str, str] | None = None
) -> Path:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, target, metadata=metadata)
    return target


@pytest.fixture(scope="session")
def small_weights(small_checkpoint: Path) -> dict[NetworkName, Tensors]:
    return weights(small_checkpoint)


def test_a_safetensors_file_gives_the_folders_weights(
    small_file: Path, small_configs: Path, small_weights: dict[NetworkName, Tensors]
) -> None:
    assert equal(weights(small_file, config=small_configs), small_weights)


def test_a_ckpt_gives_the_folders_weights(
    small_ckpt: Path, small_configs: Path, small_weights: dict[NetworkName, Tensors]
) -> None:
    assert equal(weights(small_ckpt, config=small_configs, allow_pickle=True), small_weights)


@pytest.mark.parametrize("kind", KINDS_OF_FILES)
def test_a_file_of_each_kind_gives_the_folders_weights(
    kind: ModelKind, kind_folder: KindPath, kind_file: KindPath
) -> None:
    parts, folder = SMALLS[kind].parts, kind_folder(kind)
    # Only its published name identifies SD-Turbo.
    variant = "sd-turbo" if kind == "turbo" else None
    found = weights(kind_file(kind), parts, config=folder, variant=variant)
    assert equal(found, weights(folder, parts))


@pytest.mark.parametrize("kind", ["depth", "upscaler"])
def test_a_ckpt_of_each_kind_gives_the_folders_weights(
    kind: ModelKind, kind_folder: KindPath, tmp_path: Path
) -> None:
    path = random_checkpoint(tmp_path / "it.ckpt", configs=SMALLS[kind], seed=1, layout="ldm")
    parts, folder = SMALLS[kind].parts, kind_folder(kind)
    refused(path, "is a pickle", config=folder)
    assert equal(weights(path, parts, config=folder, allow_pickle=True), weights(folder, parts))


@pytest.mark.parametrize(
    ("kind", "release"), [("turbo", "2.1"), ("inpainting", "2.0"), ("depth", "2.0"), ("upscaler", "2.0")]
)
def test_what_a_file_of_each_kind_says(
    kind: ModelKind, release: str, kind_file: KindPath, kind_folder: KindPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --config, the packaged configurations are used; here in a small size."""
    rows = {row.configs: row.kind for row in SUPPORTED}
    monkeypatch.setattr(
        PipelineConfigs, "packaged", lambda name: SMALLS[next(k for n, k in rows.items() if n == name and k)]
    )
    path = kind_file(kind)
    if kind == "turbo":
        refused(path, "pass --variant with one of 2.0-base, 2.0-v, 2.1-base, 2.1-v, sd-turbo")
        checkpoint = open_checkpoint(str(path), variant="sd-turbo")
    else:
        checkpoint = open_checkpoint(str(path))
    folder = open_checkpoint(str(kind_folder(kind)))
    assert (checkpoint.variant, checkpoint.release) == (kind, release)
    for fact in ("noise", "sampler", "native_size", "low_resolution", "depth_input", "license"):
        assert getattr(checkpoint, fact) == getattr(folder, fact), fact
    assert checkpoint.source == {path.name: sha256(path)}
    if kind != "turbo":
        refused(
            path, "--variant 2.1-base means 2.1-base, but its UNet's .* input channels", variant="2.1-base"
        )


def test_the_networks_compute_what_the_folders_do(
    small_file: Path, small_configs: Path, small_checkpoint: Path
) -> None:
    file = open_checkpoint(str(small_file), config=small_configs)
    folder = open_checkpoint(str(small_checkpoint))
    ids = torch.tensor([[49406, 320, 1125, 49407, *[0] * 73]])
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text = [each.text_encoder()(ids).last_hidden_state for each in (file, folder)]
        noise = [each.unet()(latents, 500, text[0]).sample for each in (file, folder)]
        image = [each.vae().decode(latents).sample for each in (file, folder)]
    for one, other in (text, noise, image):
        assert torch.equal(one, other)
    assert file.tokenizer_json() == folder.tokenizer_json()


def test_what_a_file_says(small_file: Path, small_configs: Path) -> None:
    checkpoint = open_checkpoint(str(small_file), config=small_configs)
    assert (checkpoint.name, checkpoint.release, checkpoint.variant) == ("small.safetensors", None, "base")
    assert (checkpoint.native_size, checkpoint.sampler.name) == (64, "pndm")
    assert checkpoint.source == {"small.safetensors": sha256(small_file)}
    assert checkpoint.license == "CreativeML Open RAIL++-M"


def test_a_file_is_hashed_once(small_file: Path, small_configs: Path) -> None:
    said: list[str] = []
    open_checkpoint(str(small_file), config=small_configs, progress=said.append)
    assert [line.split()[0] for line in said] == ["hashing"]


def test_half_precision(
    tmp_path: Path, small_configs: Path, small_weights: dict[NetworkName, Tensors]
) -> None:
    path = random_checkpoint(
        tmp_path / "half.safetensors", configs=SMALL, seed=1, layout="ldm", dtype=torch.float16
    )
    halved = {part: {k: t.half().float() for k, t in state.items()} for part, state in small_weights.items()}
    assert equal(weights(path, config=small_configs), halved)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ["stable-diffusion-2-1", "stable-diffusion-x4-upscaler"])
def test_the_layout_is_the_one_that_diffusers_converts_from(name: str, part: NetworkName) -> None:
    """At full size, each LDM tensor, filled with its number, must be converted to the names in our table."""
    configs = PipelineConfigs.packaged(name)
    network = skeleton(part, configs.part(part))
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    layout = ldm_layout(part, shapes, configs)
    marked = {}
    for number, entry in enumerate(layout):
        shape = (sum(shapes[key][0] for key in entry.members), *shapes[entry.members[0]][1:])
        marked[entry.key] = torch.tensor(float(number)).expand((*shape, 1, 1) if entry.pointwise else shape)

    if part == "unet":
        converted = convert_ldm_unet_checkpoint(dict(marked), configs.unet)
    elif part == "vae":
        converted = convert_ldm_vae_checkpoint(dict(marked), configs.vae)
    else:
        converted = convert_open_clip_checkpoint(network, dict(marked), prefix=PREFIXES[part])
    converted = {key.removeprefix("text_model."): tensor for key, tensor in converted.items()}

    assert {key: tuple(tensor.shape) for key, tensor in converted.items()} == shapes
    for number, entry in enumerate(layout):
        assert all(converted[key].flatten()[0] == number for key in entry.members), entry.key


def test_fused_projections_are_split_in_order(small_file: Path, small_configs: Path) -> None:
    fused = load_file(small_file)["cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"]
    attention = (
        open_checkpoint(str(small_file), config=small_configs).text_encoder().encoder.layers[1].self_attn
    )
    expected = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    assert torch.equal(fused, expected)


def test_the_averaged_unet_is_used_only_where_there_is_no_other(
    small_file: Path, small_configs: Path, tmp_path: Path, small_weights: dict[NetworkName, Tensors]
) -> None:
    unet = [key for key in load_file(small_file) if key.startswith(PREFIXES["unet"])]

    def beside(tensors: Tensors) -> None:
        tensors.update({ema_key(key): tensors[key] * 2 for key in unet})
        tensors["model_ema.decay"] = torch.tensor(0.9999)
        tensors["model_ema.num_updates"] = torch.tensor(3)

    def instead(tensors: Tensors) -> None:
        tensors.update({ema_key(key): tensors.pop(key) for key in unet})

    assert ema_key(unet[0]).startswith("model_ema.diffusion_model")
    assert ema_key(unet[0]).count(".") == 1
    both = edited(small_file, tmp_path / "both.safetensors", beside)
    assert equal(weights(both, config=small_configs), small_weights)
    only = edited(small_file, tmp_path / "only.safetensors", instead)
    assert equal(weights(only, config=small_configs), small_weights)


def test_what_training_leaves_in_a_file_is_ignored(
    small_ckpt: Path, small_configs: Path, tmp_path: Path, small_weights: dict[NetworkName, Tensors]
) -> None:
    content = torch.load(small_ckpt, weights_only=True)
    content |= {
        "epoch": 3,
        "optimizer_states": [{"state": {0: torch.zeros(2)}}],
        "lr_schedulers": [],
        "loops": None,
    }
    torch.save(content, tmp_path / "trained.ckpt")
    torch.save(content["state_dict"], tmp_path / "bare.ckpt")
    torch.save(content, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    for name in ("trained.ckpt", "bare.ckpt", "old.ckpt"):
        assert equal(weights(tmp_path / name, config=small_configs, allow_pickle=True), small_weights)


def test_keys_of_other_networks_are_left_out_with_a_note(
    small_file: Path, small_configs: Path, small_weights: dict[NetworkName, Tensors], tmp_path: Path
) -> None:
    text, vae = PREFIXES["text_encoder"], PREFIXES["vae"]
    strays = {
        f"{text}visual.transformer.resblocks.31.ln_1.weight": (1280,),
        f"{text}visual.positional_embedding": (257, 1280),
        f"{text}text_projection": (32, 32),
        f"{text}logit_scale": (),
        f"{vae}loss.discriminator.main.0.weight": (4, 3, 4, 4),
        f"{vae}loss.logvar": (),
        f"{vae}model_ema.decoderconv_outbias": (3,),
        "model_ema.decay": (),
    }
    path = edited(
        small_file,
        tmp_path / "strays.safetensors",
        lambda tensors: tensors.update({key: torch.zeros(shape) for key, shape in strays.items()}),
    )
    notes: list[str] = []
    assert equal(weights(path, config=small_configs, progress=notes.append), small_weights)
    assert "vae: left out training losses (2 keys), moving averages (1 key)" in notes
    [note] = [note for note in notes if note.startswith("text_encoder")]
    assert "the visual tower (2 keys)" in note


def test_names_of_newer_training_code(
    small_file: Path, small_configs: Path, small_weights: dict[NetworkName, Tensors], tmp_path: Path
) -> None:
    """SD-Turbo's and other files name the text encoder as SDXL's do; its width tells them apart."""

    def rename(tensors: Tensors) -> None:
        for key in list(tensors):
            if key.startswith("cond_stage_model."):
                tensors[key.replace("cond_stage_model.", "conditioner.embedders.0.", 1)] = tensors.pop(key)

    path = edited(small_file, tmp_path / "sgm.safetensors", rename)
    assert equal(weights(path, config=small_configs), small_weights)

    def widen(tensors: Tensors) -> None:
        rename(tensors)
        tensors["conditioner.embedders.0.model.ln_final.weight"] = torch.zeros(1280)

    refused(edited(small_file, tmp_path / "refiner.safetensors", widen), "the SDXL refiner")


def test_a_file_without_the_unused_layer_loads(small_file: Path, small_configs: Path, tmp_path: Path) -> None:
    def prune(tensors: Tensors) -> None:
        for key in [
            key for key in tensors if ".resblocks.3." in key or key.endswith(("text_projection", "betas"))
        ]:
            del tensors[key]

    pruned = edited(small_file, tmp_path / "pruned.safetensors", prune)
    assert equal(weights(pruned, config=small_configs), weights(small_file, config=small_configs))


def test_nothing_is_guessed(small_file: Path) -> None:
    said = refused(small_file, "pass --variant with one of 2.0-base, 2.0-v, 2.1-base, 2.1-v")
    assert str(small_file) in said


LDM_CONFIG = """
model:
  base_learning_rate: 1.0e-4
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    {}
    linear_start: 0.00085
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
"""


@pytest.fixture
def packaged_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks in the place of the published ones."""
    kinds = {row.configs: row.kind for row in SUPPORTED}
    small = {"base": SMALL, "v": SMALL_V}
    monkeypatch.setattr(PipelineConfigs, "packaged", lambda name: small.get(kinds[name] or "", SMALL))


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
@pytest.mark.parametrize(
    ("line", "kind"),
    [('parameterization: "v"', "v"), ("parameterization: eps", "base"), ("timesteps: 1000", "base")],
)
@pytest.mark.usefixtures("packaged_small")
def test_a_configuration_of_the_original_code_beside_it(
    suffix: str, line: str, kind: str, small_file: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(small_file, tmp_path / "tuned.safetensors"))
    path.with_suffix(suffix).write_text(LDM_CONFIG.format(line))
    checkpoint = open_checkpoint(str(path))
    assert checkpoint.variant == kind
    assert checkpoint.noise.prediction_type == ("v_prediction" if kind == "v" else "epsilon")
    other = "2.1-v" if kind == "base" else "2.1-base"
    refused(path, f"--variant {other} means {other}, but parameterization", variant=other)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a: [", "parsing"),
        ("epochs: 3", "it has no model.params"),
        ("[1, 2]", "it has no model.params"),
        ("!!python/object/apply:os.system ['touch ran']", "could not determine a constructor"),
        ("[" * 5000, "recursion"),
        ("\0", "not utf-8 text|special characters"),
    ],
)
@pytest.mark.usefixtures("packaged_small")
def test_other_yaml_beside_it_is_noted(content: str, reason: str, small_file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(small_file, tmp_path / "tuned.safetensors"))
    path.with_suffix(".yaml").write_text(content)
    notes: list[str] = []
    checkpoint = open_checkpoint(str(path), variant="2.1-base", progress=notes.append)
    assert checkpoint.variant == "base"
    (note,) = [note for note in notes if "tuned.yaml" in note]
    assert re.search(f"is not a configuration of the original code .*({reason}).*: it is ignored", note)
    assert not Path("ran").exists()


@pytest.mark.usefixtures("packaged_small")
def test_an_unknown_parameterization(small_file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(small_file, tmp_path / "tuned.safetensors"))
    path.with_suffix(".yaml").write_text(LDM_CONFIG.format("parameterization: x0"))
    refused(path, "parameterization x0 in tuned.yaml")


@pytest.mark.usefixtures("packaged_small")
def test_a_measured_guess_is_offered_and_not_taken(small_file: Path) -> None:
    """Random weights return nothing of the noise, as a model that predicts v."""
    said = refused(small_file, "pass --variant with one of 2.0-base, 2.0-v, 2.1-base, 2.1-v")
    assert (
        "A guess, not used until you pass it: 2.0-v or 2.1-v, because the UNet's output for pure noise"
        in said
    )
    assert open_checkpoint(str(small_file), variant="2.1-v").variant == "v"


@pytest.mark.parametrize(("name", "prediction"), [("demo", "epsilon"), ("demo-v", "v_prediction")])
def test_trained_networks_are_told_apart(name: str, prediction: str) -> None:
    correlation = correlation_with_noise(open_checkpoint(name).unet())
    assert likely_prediction(correlation) == prediction
    # Far from the limit on both sides.
    assert correlation > 0.99 or correlation < 0.3


@pytest.mark.parametrize(
    ("stem", "release", "kind"),
    [
        ("512-base-ema", "2.0", "base"),
        ("768-v-ema", "2.0", "v"),
        ("v2-1_512-ema-pruned", "2.1", "base"),
        ("v2-1_512-nonema-pruned", "2.1", "base"),
        ("v2-1_768-ema-pruned", "2.1", "v"),
        ("sd_turbo", "2.1", "turbo"),
        ("512-inpainting-ema", "2.0", "inpainting"),
        ("512-depth-ema", "2.0", "depth"),
        ("x4-upscaler-ema", "2.0", "upscaler"),
    ],
)
def test_a_published_name_at_full_size(
    stem: str, release: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse file with a full-size header: all but the weights is checked."""
    monkeypatch.setattr(single_file, "sha256", lambda path, progress: "0" * 64)
    path = tmp_path / f"{stem}.safetensors"
    header, end = {}, 0
    [row] = [row for row in SUPPORTED if stem in row.file_stems]
    published = PipelineConfigs.packaged(str(row.configs))
    for entry in RandomWeights(published, 0).ldm_entries():
        size = 2 * torch.Size(entry.shape).numel()
        header[entry.key] = {"dtype": "F16", "shape": list(entry.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)

    checkpoint = open_checkpoint(str(path))
    assert (checkpoint.release, checkpoint.variant) == (release, kind)
    assert checkpoint.native_size == (768 if kind == "v" else 512)
    assert (checkpoint.noise, checkpoint.sampler) == read_scheduler(
        published.scheduler, stem, row.kind or "base"
    )
    assert checkpoint.license == row.license
    other = "2.1-v" if row.name == "2.0-v" else "2.0-v"
    refused(path, f"its name {stem}.safetensors means.*leave --variant out", variant=other)


def test_a_variant_says_what_the_file_does_not(small_file: Path, small_configs: Path) -> None:
    checkpoint = open_checkpoint(str(small_file), config=small_configs, variant="2.0-base")
    assert (checkpoint.release, checkpoint.variant) == ("2.0", "base")
    refused(
        small_file, "--variant 2.1-v means 2.1-v, but prediction_type", config=small_configs, variant="2.1-v"
    )
    refused(small_file, "variant '2.2' is unknown", variant="2.2")
    refused(
        small_file, "--variant x4-upscaler means x4-upscaler, but its UNet's 4 input", variant="x4-upscaler"
    )
    refused(small_file, "--variant 2.1-unclip .*does not support yet", variant="2.1-unclip")


def test_configs_name_the_prediction_type(small_file: Path, tmp_path: Path) -> None:
    SMALL_V.write(tmp_path)
    checkpoint = open_checkpoint(str(small_file), config=tmp_path)
    assert (checkpoint.variant, checkpoint.sampler.name) == ("v", "ddim")

    scheduler = tmp_path / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**SMALL_V.scheduler, "thresholding": True}))
    refused(small_file, "thresholding", config=tmp_path)
    scheduler.unlink()
    refused(small_file, "scheduler_config.json is missing", config=tmp_path)


@pytest.mark.parametrize(
    ("metadata", "kind"),
    [
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, "base"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v"),
        ({"modelspec.prediction_type": "epsilon"}, "base"),
        ({"modelspec.prediction_type": "v"}, "v"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v", "modelspec.prediction_type": "v"}, "v"),
    ],
)
def test_metadata_tells_the_prediction_type_and_not_the_release(
    metadata: dict[str, str],
    kind: str,
    small_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packaged = {"base": SMALL, "v": SMALL_V}
    monkeypatch.setattr(
        PipelineConfigs, "packaged", lambda name: packaged["base" if name.endswith("base") else "v"]
    )
    path = edited(small_file, tmp_path / "merged.safetensors", lambda tensors: None, metadata)
    checkpoint = open_checkpoint(str(path))
    assert (checkpoint.variant, checkpoint.release) == (kind, None)
    right = f"2.1-{kind}"
    assert open_checkpoint(str(path), variant=right).release == "2.1"
    wrong = "2.0-v" if kind == "base" else "2.0-base"
    refused(path, f"--variant {wrong} means.*modelspec", variant=wrong)


def test_a_prediction_that_the_published_model_does_not_make_needs_a_configuration(
    kind_file: KindPath, tmp_path: Path
) -> None:
    SMALLS["inpainting"].write(tmp_path / "configs")
    metadata = {"modelspec.prediction_type": "v"}
    path = edited(kind_file("inpainting"), tmp_path / "it.safetensors", lambda tensors: None, metadata)
    match = "modelspec.prediction_type is v, but the scheduler's configuration has epsilon: pass --config"
    refused(path, match)
    refused(path, match, config=tmp_path / "configs")
    scheduler = SMALL_V.scheduler
    replace(SMALLS["inpainting"], scheduler=scheduler).write(tmp_path / "configs")
    checkpoint = open_checkpoint(str(path), config=tmp_path / "configs")
    assert (checkpoint.variant, checkpoint.noise.prediction_type) == ("inpainting", "v_prediction")


def test_metadata_and_name_must_agree(small_file: Path, tmp_path: Path) -> None:
    metadata = {"modelspec.architecture": "stable-diffusion-v2-512"}
    path = edited(small_file, tmp_path / "768-v-ema.safetensors", lambda tensors: None, metadata)
    refused(path, "its name 768-v-ema.safetensors means 2.0-v, but modelspec.architecture.*rename the file")


def test_a_published_hash_beats_the_name_and_the_variant(
    small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_configs: Path
) -> None:
    path = tmp_path / "v2-1_768-ema-pruned.safetensors"
    path.write_bytes(small_file.read_bytes())
    files = {sha256(path): path.stat().st_size}
    table = tuple(replace(row, files=files) if row.name == "2.0-base" else row for row in VARIANTS)
    for module in (identify, single_file):
        monkeypatch.setattr(module, "VARIANTS", table)

    checkpoint = open_checkpoint(str(path), config=small_configs)
    assert (checkpoint.release, checkpoint.variant) == ("2.0", "base")
    refused(
        path, "--variant 2.1-base means 2.1-base, but its SHA-256", variant="2.1-base", config=small_configs
    )


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("model.diffusion_model.middle_block.1.proj_in.weight", "unet"),
        ("first_stage_model.decoder.up.2.block.1.conv1.bias", "vae"),
        ("cond_stage_model.model.transformer.resblocks.2.attn.in_proj_bias", "text_encoder"),
        ("cond_stage_model.model.positional_embedding", "text_encoder"),
    ],
)
def test_keys_that_are_missing_unexpected_or_misshapen(
    key: str, part: str, small_file: Path, small_configs: Path, tmp_path: Path
) -> None:
    path = tmp_path / "edited.safetensors"
    edited(small_file, path, lambda tensors: tensors.__delitem__(key))
    refused(path, f"lacks the key {key} of its {part}", config=small_configs)
    edited(small_file, path, lambda tensors: tensors.update({key: torch.zeros(3, 7)}))
    refused(path, rf"{key} has shape \[3, 7\], expected \[", config=small_configs)
    edited(small_file, path, lambda tensors: tensors.update({f"{key}.extra": torch.zeros(1)}))
    refused(path, f"has the key {key}.extra, which an SD2 {part} does not", config=small_configs)


DEPTH = "depth_model.model."


@pytest.mark.parametrize(
    ("kind", "key", "part"),
    [
        ("inpainting", "model.diffusion_model.out.2.bias", "unet"),
        ("upscaler", "model.diffusion_model.label_emb.weight", "unet"),
        ("upscaler", "first_stage_model.decoder.up.2.block.1.conv1.bias", "vae"),
        ("depth", DEPTH + "pretrained.model.blocks.3.attn.qkv.bias", "depth_estimator"),
        ("depth", DEPTH + "pretrained.model.patch_embed.backbone.stem.conv.weight", "depth_estimator"),
        ("depth", DEPTH + "scratch.output_conv.4.weight", "depth_estimator"),
    ],
)
def test_keys_of_each_kind_that_are_missing_unexpected_or_misshapen(
    kind: ModelKind, key: str, part: str, kind_file: KindPath, kind_folder: KindPath, tmp_path: Path
) -> None:
    path, source, config = tmp_path / "edited.safetensors", kind_file(kind), kind_folder(kind)
    edited(source, path, lambda tensors: tensors.__delitem__(key))
    if key.endswith("label_emb.weight"):
        refused(path, "not a Stable Diffusion 2 checkpoint .its UNet's 7 input channels.:", config=config)
    else:
        refused(path, f"lacks the key {key} of its {part}", config=config)
    edited(source, path, lambda tensors: tensors.update({key: torch.zeros(3, 7)}))
    refused(path, rf"{key} has shape \[3, 7\], expected \[", config=config)
    edited(source, path, lambda tensors: tensors.update({f"{key}.extra": torch.zeros(1)}))
    refused(path, f"has the key {key}.extra, which an SD2 {part} does not", config=config)


@pytest.mark.parametrize("kind", ["depth", "upscaler"])
def test_what_nothing_reads_may_be_missing(
    kind: ModelKind, kind_file: KindPath, kind_folder: KindPath, tmp_path: Path
) -> None:
    path = tmp_path / "pruned.safetensors"
    unread = ("low_scale_model.", DEPTH + "pretrained.model.head.", "alphas", "betas", "sqrt_", "log_one")

    def prune(tensors: Tensors) -> None:
        for key in [key for key in tensors if key.startswith(unread)]:
            del tensors[key]

    edited(kind_file(kind), path, prune)
    parts, folder = SMALLS[kind].parts, kind_folder(kind)
    assert equal(weights(path, parts, config=folder), weights(folder, parts))


@pytest.mark.parametrize("kind", KINDS_OF_FILES)
@pytest.mark.parametrize("given", [True, False])
def test_a_moving_average_stands_in_for_the_unet_of_each_kind(
    kind: ModelKind, given: bool, kind_file: KindPath, kind_folder: KindPath, tmp_path: Path
) -> None:
    path = tmp_path / "ema.safetensors"

    def average(tensors: Tensors) -> None:
        for key in [key for key in tensors if key.startswith(UNET)]:
            tensors[ema_key(key)] = tensors.pop(key)

    edited(kind_file(kind), path, average)
    parts, folder = SMALLS[kind].parts, kind_folder(kind)
    variant = "sd-turbo" if kind == "turbo" else None
    if given:
        assert equal(weights(path, parts, config=folder, variant=variant), weights(folder, parts))
    else:
        # Recognised, but of another size than the published one.
        refused(path, "lacks .* of its text_encoder", variant=variant)


def test_a_depth_estimator_that_no_single_file_holds(
    kind_file: KindPath, kind_folder: KindPath, tmp_path: Path
) -> None:
    config = Path(shutil.copytree(kind_folder("depth"), tmp_path / "configs"))
    path = config / "depth_estimator" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_batch_norm_in_fusion_residual": True}))
    refused(kind_file("depth"), "describes a network that has no single-file layout", config=config)


def test_a_file_of_another_size_than_the_configuration(small_file: Path) -> None:
    refused(small_file, "lacks .* of its text_encoder", variant="2.1-v")


def test_damaged_safetensors(small_file: Path, tmp_path: Path) -> None:
    path, whole = tmp_path / "damaged.safetensors", small_file.read_bytes()
    for cut in (len(whole) // 2, len(whole) - 1, 50, 3):
        path.write_bytes(whole[:cut])
        refused(path, "is truncated: it has|is not a safetensors file, or damaged at its start")
    path.write_bytes(b"<!DOCTYPE html><html>not found</html>")
    refused(path, "is a web page, not a safetensors file: download the file itself")
    path.write_bytes(b"")
    refused(path, "is empty")
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")
    refused(path, "git lfs pull")


def test_a_pickle_is_read_only_when_allowed(small_ckpt: Path, small_configs: Path, tmp_path: Path) -> None:
    refused(
        small_ckpt, r"is a pickle, .*can contain code.*\.safetensors.*--allow-pickle", config=small_configs
    )
    renamed = tmp_path / "small.safetensors"
    renamed.write_bytes(small_ckpt.read_bytes())
    refused(renamed, r"is a pickle, despite its suffix \.safetensors")
    renamed.write_bytes(pickle.dumps({"a": 1}))
    refused(renamed, r"is a pickle, despite its suffix \.safetensors")
    # With a header of 0x80 bytes, a safetensors file begins like a pickle.
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(0x80)
    renamed.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    refused(renamed, "unknown .its first key is a")


def framed(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ONE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (framed(ONE, bytes(7)), r"is truncated: it has [0-9]+ bytes of [0-9]+ .*: get the file again"),
        (framed(ONE)[:20], r"is truncated: it has 20 bytes of [0-9]+"),
        (framed(ONE, bytes(11)), "has 3 bytes more than its header describes: something was appended"),
        (
            framed({"a": ONE["a"] | {"dtype": "F9_X"}}, bytes(8)),
            "is whole, but the safetensors library cannot read it",
        ),
        (
            framed({"a": ONE["a"] | {"shape": [3]}}, bytes(8)),
            "is whole, but the safetensors library cannot read it",
        ),
        (b'{"error": "Invalid credentials"}', "is JSON text, such as"),
        (b"\x1f\x8b\x08" + bytes(99), "is a gzip archive, not a safetensors file: extract"),
        (b"Rar!\x1a\x07\x01" + bytes(99), "is a RAR archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file"),
        (b"\x08\x07\x12\xff" * 99, "is not a safetensors file, or damaged at its start"),
    ],
)
def test_why_a_safetensors_file_cannot_be_read(content: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "it.safetensors"
    path.write_bytes(content)
    said = refused(path, match)
    assert ("get the file again" in said) == ("truncated" in said)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("half an archive", "is truncated: its archive has no end: get the file again"),
        ("half a pickle", "is truncated .*: get the file again"),
        ("another archive", "is a ZIP archive without weights: extract the checkpoint from it"),
        ("7z", "is a 7z archive, not a PyTorch checkpoint: extract"),
        ("bytes", "is not a PyTorch checkpoint: it begins with neither an archive nor a pickle"),
        ("a broken pickle", "is damaged, or a pickle that PyTorch's weights-only loader cannot read"),
    ],
)
def test_why_a_pickle_cannot_be_read(kind: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "it.ckpt"
    torch.save({"a": torch.zeros(500)}, path, _use_new_zipfile_serialization=kind != "half a pickle")
    content = path.read_bytes()
    if kind == "another archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "the checkpoint is elsewhere")
    else:
        other = {
            "7z": b"7z\xbc\xaf\x27\x1c" + bytes(99),
            "bytes": bytes(range(200, 256)),
            "a broken pickle": b"\x80\x02}.",
        }
        path.write_bytes(other.get(kind, content[: len(content) // 2]))
    if kind == "a broken pickle":
        path.write_bytes(b"\x80\x02(l.")
    said = refused(path, match, allow_pickle=True)
    assert ("get the file again" in said) == ("truncated" in said)


class Payload:
    """Pickled object that runs code when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_does_not_run(protocol: int, zipped: bool, tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.ckpt"
    content = {"state_dict": {"a": torch.zeros(2)}, "callbacks": Payload(marker)}
    if zipped:
        torch.save(content, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps({"callbacks": Payload(marker)}, protocol=protocol))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(path, "contains more than weights.*was not loaded", allow_pickle=True)
        refused(path, "is a pickle", allow_pickle=False)
    assert not marker.exists()


def test_pickles_that_hold_no_checkpoint(small_ckpt: Path, tmp_path: Path) -> None:
    path, whole = tmp_path / "bad.ckpt", small_ckpt.read_bytes()
    for content, match in (
        (torch.nn.Linear(2, 2), "holds an object of another class, expected named tensors"),
        ([1, 2], "holds a list"),
        ({1: torch.zeros(1)}, "expected named tensors"),
        ({"epoch": 3}, "has no tensors"),
    ):
        torch.save(content, path)
        refused(path, match, allow_pickle=True)
    for damaged in (whole[: len(whole) // 2], whole[:20], b"hello"):
        path.write_bytes(damaged)
        refused(path, "is truncated: its archive|is text, not a PyTorch checkpoint", allow_pickle=True)


SD1_CLIP = "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"
VAE_KEY = "first_stage_model.decoder.conv_in.weight"
ATTENTION = "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        (
            {UNET + ATTENTION: (320, 768), SD1_CLIP: (77, 768), VAE_KEY: (1,)},
            "a Stable Diffusion 1 checkpoint",
        ),
        (
            {
                UNET + ATTENTION: (320, 768),
                "cond_stage_model.model.ln_final.weight": (768,),
                VAE_KEY: (1,),
            },
            "a Stable Diffusion 1 checkpoint",
        ),
        (
            {
                "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight": (
                    77,
                    768,
                ),
                "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,),
                UNET + "label_emb.0.0.weight": (1280, 2816),
            },
            "an SDXL checkpoint",
        ),
        (
            {
                "conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,),
                UNET + "label_emb.0.0.weight": (1536, 2560),
            },
            "the SDXL refiner",
        ),
        (
            {UNET + "joint_blocks.0.context_block.adaLN_modulation.1.bias": (9216,)},
            "a Stable Diffusion 3 check",
        ),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": (128,)}, "a Flux checkpoint"),
        ({UNET + "double_blocks.0.img_attn.norm.key_norm.scale": (128,)}, "a Flux checkpoint"),
        ({"control_model.time_embed.0.weight": (1280, 320)}, "a ControlNet"),
        ({"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}, "a ControlNet"),
        ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 320)}, "a LoRA"),
        ({"unet.down_blocks.0.attentions.0.to_q.lora_A.weight": (4, 320)}, "a LoRA"),
        ({"unet.down_blocks.0.attentions.0.processor.to_q_lora.lora.down.weight": (4, 320)}, "a LoRA"),
        ({"emb_params": (2, 1024)}, "a textual inversion embedding"),
        ({"<my-cat>": (1024,)}, "a textual inversion embedding"),
        ({"conv_in.weight": (320, 4, 3, 3), "down_blocks.0.resnets.0.norm1.weight": (320,)}, "a UNet alone"),
        ({"input_blocks.0.0.weight": (320, 4, 3, 3)}, "a UNet alone"),
        ({UNET + "input_blocks.0.0.weight": (320, 4, 3, 3)}, "a UNet alone"),
        ({"encoder.down_blocks.0.resnets.0.norm1.weight": (128,)}, "a VAE alone"),
        ({"decoder.up.0.block.0.norm1.weight": (128,)}, "a VAE alone"),
        (
            {
                UNET + "input_blocks.0.0.weight": (320, 4, 3, 3),
                "cond_stage_model.model.ln_final.weight": (1024,),
            },
            "a UNet and a text encoder without a VAE",
        ),
        (
            {
                UNET + "input_blocks.0.0.weight": (320, 4, 3, 3),
                "first_stage_model.encoder.conv_in.weight": (8,),
            },
            "a UNet and a VAE without a text encoder",
        ),
        (
            {"vae.encoder.conv_in.weight": (8,), "text_encoder.text_model.final_layer_norm.weight": (1024,)},
            "a VAE and a text encoder without a UNet",
        ),
        (
            {
                "unet.conv_in.weight": (8,),
                "vae.encoder.conv_in.weight": (8,),
                "text_encoder.text_model.x": (8,),
            },
            "a UNet, a VAE and a text encoder in names of another layout",
        ),
        ({UNET + "time_embed.cond_proj.weight": (320, 256)}, "a latent consistency model whose UNet embeds"),
        ({"time_embedding.cond_proj.weight": (320, 256)}, "a latent consistency model whose UNet embeds"),
        ({VAE_KEY: (512, 4, 3, 3)}, "a VAE alone"),
        ({"text_model.encoder.layers.0.layer_norm1.weight": (1024,)}, "a text encoder alone"),
        ({"encoder.layers.0.layer_norm1.weight": (1024,)}, "a text encoder alone"),
        ({"transformer.resblocks.0.ln_1.weight": (1024,)}, "a text encoder alone"),
        (
            {"head.modulation": (1, 2, 1536), "patch_embedding.weight": (1536, 16, 1, 2, 2)},
            "of the kind of Wan-AI",
        ),
        ({"layer.weight": (3, 3)}, r"unknown \(its first key is layer.weight\)"),
    ],
)
def test_other_models_are_named(shapes: dict[str, tuple[int, ...]], match: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({key: torch.zeros(shape, dtype=torch.float16) for key, shape in shapes.items()}, path)
    said = refused(path, match)
    assert "not a Stable Diffusion 2 checkpoint" in said
    refused(path, match, variant="2.1-v")


@pytest.mark.parametrize(
    ("channels", "extra", "match"),
    [
        # Identified by their inputs, then checked against the published size.
        (5, {}, "lacks .* of its text_encoder"),
        (9, {}, "lacks .* of its text_encoder"),
        (7, {UNET + "label_emb.weight": (1000, 16)}, "lacks .* of its text_encoder"),
        (4, {UNET + "label_emb.0.0.weight": (64, 2048)}, "2.1-unclip .*does not support yet"),
        (8, {}, "not a Stable Diffusion 2 checkpoint .its UNet's 8 input channels"),
    ],
)
def test_other_variants_are_named(
    channels: int, extra: dict[str, tuple[int, ...]], match: str, small_file: Path, tmp_path: Path
) -> None:
    def widen(tensors: Tensors) -> None:
        tensors[UNET + "input_blocks.0.0.weight"] = torch.zeros(16, channels, 3, 3)
        tensors.update({key: torch.zeros(shape) for key, shape in extra.items()})

    refused(edited(small_file, tmp_path / "other.safetensors", widen), match)


def test_sd_turbo_is_told_by_its_published_name(small_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "sd_turbo.safetensors"
    path.write_bytes(small_file.read_bytes())
    SMALL_TURBO.write(tmp_path / "configs")
    checkpoint = open_checkpoint(str(path), config=tmp_path / "configs")
    assert (checkpoint.variant, checkpoint.license) == ("turbo", "Stability AI Community License")
    match = "--variant 2.1-base means 2.1-base, but its name sd_turbo.safetensors means sd-turbo"
    refused(path, match, variant="2.1-base", config=tmp_path / "configs")


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        (
            {
                UNET + ATTENTION: (320, 1024),
                SD1_CLIP: (77, 768),
                "cond_stage_model.transformer.text_model.encoder.layers.11.layer_norm1.weight": (768,),
            },
            r"text encoder is 768 wide with 12 layers \(CLIP-L, Stable Diffusion 1's\), but the UNet attends to "
            "1024",
        ),
        (
            {
                UNET + ATTENTION: (320, 768),
                "cond_stage_model.model.ln_final.weight": (1024,),
                "cond_stage_model.model.transformer.resblocks.23.ln_1.weight": (1024,),
            },
            r"text encoder is 1024 wide with 24 layers \(OpenCLIP ViT-H.*\), but the UNet attends to 768",
        ),
        (
            {
                UNET + ATTENTION: (320, 1024),
                "cond_stage_model.model.ln_final.weight": (1024,),
                "cond_stage_model.model.transformer.resblocks.11.ln_1.weight": (1024,),
            },
            "text encoder is 1024 wide with 12 layers, but the UNet, which attends to 1024",
        ),
    ],
)
def test_a_text_encoder_that_is_not_the_unets_is_refused(
    shapes: dict[str, tuple[int, ...]], match: str, tmp_path: Path
) -> None:
    path = tmp_path / "mixed.safetensors"
    save_file({key: torch.zeros(shape) for key, shape in {**shapes, VAE_KEY: (1,)}.items()}, path)
    refused(path, match)
    refused(path, match, variant="2.1-v")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("model.gguf", b"GGUF\x03", "a GGUF file"),
        ("model.safetensors", b"GGUF\x03", "a GGUF file"),
        ("model.onnx", b"\x08\x07", "an ONNX export"),
        ("unet.engine", b"ftrt", "a TensorRT engine"),
        ("unet.plan", b"ftrt", "a TensorRT engine"),
        ("notes.txt", b"hello", r"has the suffix \.txt, expected \.safetensors or \.ckpt"),
        ("model", b"hello", "has no suffix, expected"),
    ],
)
def test_other_files_are_named(name: str, content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, match)
