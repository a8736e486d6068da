"""A checkpoint that was recognised and checked, and whose networks can be loaded one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from sd2rt.engines.sampling import NoiseConfig, SamplerConfig
from sd2rt.export.networks import assemble
from sd2rt.export.diffusers_folder import open_folder
from sd2rt.export.parts import Found, Parts
from sd2rt.export.pipeline_configs import PartName
from sd2rt.export.random_weights import open_demo
from sd2rt.export.scheduler_config import read_scheduler
from sd2rt.export.variants import Kind

@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is known of a checkpoint; each loading method reads its part anew and keeps nothing."""

    name: str
    release: str | None
    """``2.0`` or ``2.1``; None where nothing in the checkpoint tells."""
    variant: Kind
    noise: NoiseConfig
    sampler: SamplerConfig
    native_size: int
    """Side of the trained images, in pixels."""
    source: dict[str, str]
    """SHA-256 of every weights file, by its name relative to the checkpoint."""
    license: str
    parts: Parts = field(repr=False)

    def tokenizer_json(self) -> str:
        """The tokenizer in the Hugging Face tokenizers format: truncates and pads to 77 ids.

        Raises CheckpointError when the checkpoint's own tokenizer cannot be read.
        """
        return self.parts.tokenizer_json()

    def text_encoder(self, dtype: torch.dtype = torch.float32) -> CLIPTextModel:
        """The text encoder: ids [B, 77] to hidden states [B, 77, D]. Raises CheckpointError."""
        return cast(CLIPTextModel, self._load("text_encoder", dtype))

    def unet(self, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
        """The denoiser: latents [B, 4, H/8, W/8], timesteps [B] and text [B, 77, D]. Raises CheckpointError."""
        return cast(UNet2DConditionModel, self._load("unet", dtype))

    def vae(self, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
        """The autoencoder between images [B, 3, H, W] and latents [B, 4, H/8, W/8]. Raises CheckpointError."""
        return cast(AutoencoderKL, self._load("vae", dtype))

    def _load(self, part: PartName, dtype: torch.dtype) -> Any:
        return assemble(part, self.parts.config(part), self.parts.tensors(part), dtype, self.name)


def open_checkpoint(
    name_or_path: str,
    *,
    variant: str | None = None,
    allow_pickle: bool = False,
    config: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Checkpoint:
    if name_or_path == "demo":
        return _checkpoint(open_demo(variant))
    return _checkpoint(open_folder(Path(name_or_path), variant=variant, progress=progress))


def _checkpoint(found: Found) -> Checkpoint:
    noise, sampler = read_scheduler(found.configs.scheduler, found.name)
    return Checkpoint(
        name=found.name,
        release=found.release,
        variant="base" if noise.prediction_type == "epsilon" else "v",
        noise=noise,
        sampler=sampler,
        native_size=found.configs.native_size,
        source=found.source,
        license=found.license,
        parts=found.parts,
    )
