"""Another VAE at build, in every form that it is found in, against diffusers with that VAE."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file

from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints.changes.vae import with_vae
from sd2rt.export.checkpoints.checkpoint import open_checkpoint
from sd2rt.export.checkpoints.tiny_configs import SMALL
from sd2rt.export.reference import reference_pipeline
from sd2rt.export.testing.random_weights import random_checkpoint
from sd2rt.runtime import Pipeline
from sd2rt.runtime.cli.main import main

SEED = 23
_LDM = "first_stage_model."
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with another checkpoint of the same architecture, in both layouts."""
    folder = tmp_path_factory.mktemp("other")
    random_checkpoint(folder / "folder", configs=SMALL, seed=SEED)
    random_checkpoint(folder / "whole.safetensors", configs=SMALL, seed=SEED, layout="ldm")
    return folder


def _bare(other: Path) -> Tensors:
    """The VAE under LDM's names without a prefix, as published."""
    whole = load_file(other / "whole.safetensors")
    return {key.removeprefix(_LDM): tensor for key, tensor in whole.items() if key.startswith(_LDM)}


def _single(change: Callable[[Path], Tensors], suffix: str = ".safetensors") -> Callable[[Path, Path], Path]:
    def write(other: Path, folder: Path) -> Path:
        path = folder / f"other{suffix}"
        if suffix == ".safetensors":
            save_file(change(other), path)
        else:
            torch.save({"state_dict": change(other)}, path)
        return path

    return write


def _of_diffusers(other: Path) -> Tensors:
    return load_file(other / "folder" / "vae" / "diffusion_pytorch_model.safetensors")


def _with_losses(other: Path) -> Tensors:
    return {**_bare(other), "loss.logvar": torch.zeros(()), "model_ema.decay": torch.zeros(())}


FORMS: dict[str, Callable[[Path, Path], Path]] = {
    "a pipeline's folder": lambda other, folder: other / "folder",
    "its own folder": lambda other, folder: other / "folder" / "vae",
    "a whole checkpoint": lambda other, folder: other / "whole.safetensors",
    "LDM's names": _single(_bare),
    "diffusers' names": _single(_of_diffusers),
    "float16": _single(lambda other: {key: tensor.half() for key, tensor in _bare(other).items()}),
    "a pickle with losses": _single(_with_losses, ".vae.pt"),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(small_checkpoint: Path, other: Path, tmp_path: Path, form: str) -> None:
    path = FORMS[form](other, tmp_path)
    checkpoint = open_checkpoint(str(small_checkpoint))
    changed = with_vae(checkpoint, path, allow_pickle=form.startswith("a pickle"))
    weights = changed.vae().state_dict()
    expected = AutoencoderKL.from_pretrained(other / "folder" / "vae").state_dict()
    converted = convert_ldm_vae_checkpoint(_bare(other), SMALL.vae)
    assert weights.keys() == expected.keys() == converted.keys()
    for name, weight in weights.items():
        for theirs in (expected[name], converted[name].reshape(weight.shape)):
            wanted = theirs.half().float() if form == "float16" else theirs
            assert torch.equal(weight, wanted), name
    unchanged = checkpoint.unet().state_dict()
    assert all(torch.equal(weight, unchanged[name]) for name, weight in changed.unet().state_dict().items())
    assert not any(name.startswith("vae/") for name in changed.source)
    assert sum(name.startswith("VAE ") for name in changed.source) == 1


def _sdxl(folder: Path) -> Path:
    """The same network with SDXL's scale, which makes its latents others."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.13025}))
    return folder


def _without(key: str) -> Callable[[Path], Path]:
    def change(folder: Path) -> Path:
        path = folder / "diffusion_pytorch_model.safetensors"
        save_file({name: tensor for name, tensor in load_file(path).items() if name != key}, path)
        return path

    return change


def _tiny(folder: Path) -> Path:
    (folder / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    return folder


def _renamed(folder: Path) -> Path:
    return (folder / "diffusion_pytorch_model.safetensors").rename(folder / "vae.bin2")


def _wider(folder: Path) -> Path:
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"decoder.conv_in.bias": torch.zeros(99)}, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _sdxl,
            "scaling_factor is 0.13025, the checkpoint's own VAE has 0.18215: it belongs to another model",
        ),
        (_without("decoder.conv_in.bias"), "vae lacks the key decoder.conv_in.bias"),
        (_wider, r"vae key decoder.conv_in.bias has shape \[99\]"),
        (_tiny, "is an autoencoder of class 'AutoencoderTiny', expected AutoencoderKL"),
        (_renamed, "is not a .safetensors, .ckpt, .pt, .pth or .bin"),
        (lambda folder: folder / "none.safetensors", "is missing"),
    ],
)
def test_refusals(
    small_checkpoint: Path, other: Path, tmp_path: Path, change: Callable[[Path], Path], message: str
) -> None:
    shutil.copytree(other / "folder" / "vae", tmp_path / "vae")
    with pytest.raises(CheckpointError, match=message) as error:
        with_vae(open_checkpoint(str(small_checkpoint)), change(tmp_path / "vae"))
    assert "\n" not in str(error.value)


def test_a_pickle_needs_permission(small_checkpoint: Path, other: Path, tmp_path: Path) -> None:
    path = FORMS["a pickle with losses"](other, tmp_path)
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        with_vae(open_checkpoint(str(small_checkpoint)), path)


def test_pictures_are_diffusers_with_that_vae(
    small_checkpoint: Path,
    small_bundle: Path,
    other: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = FORMS["LDM's names"](other, tmp_path)
    bundle = tmp_path / "bundle"
    assert main(["build", str(small_checkpoint), "--vae", str(path), "-o", str(bundle)]) == 0
    capsys.readouterr()
    manifest = read_manifest(bundle)
    assert [*manifest.other_vae] == ["other.safetensors"]
    assert manifest.build_key != read_manifest(small_bundle).build_key
    main(["inspect", str(bundle)])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"VAE other.safetensors ({manifest.other_vae['other.safetensors'][:12]})" in shown
    reference = reference_pipeline(open_checkpoint(str(small_checkpoint)))
    reference.vae = AutoencoderKL.from_pretrained(other / "folder" / "vae")
    options: dict[str, Any] = {"num_inference_steps": 3, "output_type": "np"}
    expected = reference("a fox", generator=torch.Generator().manual_seed(4), **options).images
    with Pipeline.open(bundle, threads=1) as pipe:
        ours = pipe("a fox", seed=4, **options).images
    with Pipeline.open(small_bundle, threads=1) as pipe:
        own = pipe("a fox", seed=4, **options).images
    assert np.abs(ours - expected).max() <= 2 / 255
    assert np.abs(ours - own).max() > 0.1


def test_a_missing_file_is_named_at_once(small_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(small_checkpoint), "--vae", "nowhere.safetensors"]) == 3
    assert "nowhere.safetensors does not exist" in capsys.readouterr().err
