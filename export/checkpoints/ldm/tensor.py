"""One tensor of an original single-file (LDM) checkpoint, and the key prefix of each network."""

from __future__ import annotations

from dataclasses import dataclass

from sd2rt.export.checkpoints.pipeline_configs import NetworkName

PREFIXES: dict[NetworkName, str] = {
    "text_encoder": "cond_stage_model.model.",
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "depth_estimator": "depth_model.model.",
}


@dataclass(frozen=True, slots=True)
class LdmTensor:
    """One tensor of an LDM file: its full key, and the diffusers tensors that it stacks along dimension 0."""

    key: str
    members: tuple[str, ...]
    pointwise: bool = False
    """Stored as a 1x1 convolution [O, I, 1, 1]; diffusers has a linear layer [O, I]."""
