"""Open a checkpoint of any format: recognise it, check it, and load its networks one at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, DPTForDepthEstimation

from sd2rt.engines.bundle.manifest import DepthInput, LowResolution
from sd2rt.engines.bundle.model_kinds import KINDS, Defaults, ModelKind, TaskName
from sd2rt.engines.bundle.sampler_config import NoiseConfig, SamplerConfig
from sd2rt.engines.demo.files import DEMO_NAMES
from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints.arguments import is_hub_id, missing_checkpoint
from sd2rt.export.checkpoints.condition_configs import read_depth_input, read_low_resolution
from sd2rt.export.checkpoints.demo import open_demo
from sd2rt.export.checkpoints.diffusers_folder import open_folder
from sd2rt.export.checkpoints.hub import fetch
from sd2rt.export.checkpoints.networks import assemble
from sd2rt.export.checkpoints.pipeline_configs import NetworkName
from sd2rt.export.checkpoints.scheduler_config import read_scheduler
from sd2rt.export.checkpoints.single_file import open_single_file
from sd2rt.export.checkpoints.source import NetworkSource, OpenedCheckpoint


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A recognised and checked checkpoint. Networks are loaded from its files at each call and not cached."""

    name: str
    release: str | None
    """``2.0`` or ``2.1``; None if the checkpoint does not determine it."""
    variant: ModelKind
    """The kind of model, which determines the tasks of its bundle."""
    noise: NoiseConfig
    sampler: SamplerConfig
    native_size: int
    """Side of the training images, in pixels."""
    low_resolution: LowResolution | None
    """Noise schedule and limit for an upscaler's input image; None for other kinds."""
    depth_input: DepthInput | None
    """Preprocessing for the depth estimator; None without one."""
    source: dict[str, str]
    """SHA-256 of each weights file, by its path relative to the checkpoint."""
    license: str
    tasks: dict[TaskName, Defaults]
    """Tasks of its bundle, with the defaults of their requests."""
    parts: NetworkSource = field(repr=False)
    license_files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Licence texts and model cards beside the weights, by name."""

    def tokenizer_json(self) -> str:
        """The tokenizer in the Hugging Face tokenizers format, set to truncate and pad to 77 ids.

        Raises:
            CheckpointError: the checkpoint's tokenizer cannot be read.
        """
        return self.parts.tokenizer_json()

    def text_encoder(self, dtype: torch.dtype = torch.float32) -> CLIPTextModel:
        """Load the text encoder: ids [B, 77] to hidden states [B, 77, D].

        Raises:
            CheckpointError: a weight is missing or damaged.
        """
        return cast(CLIPTextModel, self._load("text_encoder", dtype))

    def unet(self, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
        """Load the denoiser: latents and conditioning channels [B, 4 + Cx, h, w], timesteps [B], text [B, 77, D].

        Raises:
            CheckpointError: a weight is missing or damaged.
        """
        return cast(UNet2DConditionModel, self._load("unet", dtype))

    def vae(self, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
        """Load the autoencoder: images [B, 3, H, W], latents [B, 4, H/8, W/8], or [B, 4, H/4, W/4] for an upscaler.

        Raises:
            CheckpointError: a weight is missing or damaged.
        """
        return cast(AutoencoderKL, self._load("vae", dtype))

    def depth_estimator(self, dtype: torch.dtype = torch.float32) -> DPTForDepthEstimation:
        """Load the depth estimator: images [B, 3, S, S] to depths [B, S, S].

        Raises:
            CheckpointError: the checkpoint has none, or a weight is missing or damaged.
        """
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
    """Recognise a checkpoint, check that its weights are complete, and refuse one that cannot be built.

    Args:
        name_or_path: a diffusers folder, a single LDM file, a Hub id ``organisation/repository``, or
            one of ``demo.DEMO_NAMES``. An existing path takes precedence.
        variant: a name from ``variants.SUPPORTED``, for a checkpoint that does not determine its variant; it
            must agree with what the checkpoint does determine.
        allow_pickle: read a ``.ckpt``, or ``.bin`` files of a folder, of which only tensors are read.
        config: for a single file whose networks differ in size from the published ones: a folder of diffusers
            configuration files. Its scheduler's prediction type applies.
        progress: called with a message before each step that takes seconds.

    Raises:
        CheckpointError: one line that names the file, the problem and the remedy.
    """
    # os.path, unlike pathlib, returns False for impossible paths, such as a name of 300 letters.
    path = Path(os.path.expanduser(name_or_path))
    if os.path.isfile(path):
        opened = open_single_file(
            path, variant=variant, allow_pickle=allow_pickle, config=config, progress=progress
        )
        return _checkpoint(opened)
    if config is not None and (os.path.isdir(path) or name_or_path in DEMO_NAMES or is_hub_id(name_or_path)):
        raise CheckpointError(
            f"{name_or_path} is not a single file and has its own configuration: leave config out"
        )
    if os.path.isdir(path):
        return _checkpoint(open_folder(path, variant=variant, allow_pickle=allow_pickle, progress=progress))
    if name_or_path in DEMO_NAMES:
        return _checkpoint(open_demo(name_or_path, variant))
    if is_hub_id(name_or_path):
        folder = fetch(name_or_path, progress, allow_pickle)
        return _checkpoint(
            open_folder(
                folder, name=name_or_path, variant=variant, allow_pickle=allow_pickle, progress=progress
            )
        )
    if os.path.exists(path):
        raise CheckpointError(
            f"{name_or_path} is neither a regular file nor a folder: copy the checkpoint to a file"
        )
    raise missing_checkpoint(name_or_path)


def _checkpoint(opened: OpenedCheckpoint) -> Checkpoint:
    noise, sampler = read_scheduler(opened.configs.scheduler, opened.name, opened.kind)
    return Checkpoint(
        name=opened.name,
        release=opened.release,
        variant=opened.kind,
        noise=noise,
        sampler=sampler,
        native_size=opened.configs.native_size,
        low_resolution=read_low_resolution(opened.configs, opened.name),
        depth_input=read_depth_input(opened.configs, opened.name),
        source=opened.source,
        license=opened.license,
        tasks=KINDS[opened.kind].tasks if opened.tasks is None else opened.tasks,
        parts=opened.parts,
        license_files=opened.license_files,
    )
