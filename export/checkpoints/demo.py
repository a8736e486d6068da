"""The demo: a small trained family of SD2's architecture that comes with the package, one name for each kind."""

from __future__ import annotations

from pathlib import Path

import torch

from sd2rt.engines.bundle.model_kinds import ModelKind
from sd2rt.engines.demo.files import WEIGHTS
from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints.identify import stated
from sd2rt.export.checkpoints.pipeline_configs import Config, NetworkName, PipelineConfigs
from sd2rt.export.checkpoints.source import OpenedCheckpoint
from sd2rt.export.checkpoints.tiny_configs import DEMOS
from sd2rt.export.checkpoints.tokenizer_json import packaged_tokenizer_json
from sd2rt.export.checkpoints.weight_file import open_safetensors, sha256

DEMO_NAMES: dict[str, ModelKind] = {
    "demo": "base",
    "demo-v": "v",
    "demo-inpaint": "inpainting",
    "demo-depth": "depth",
    "demo-x4": "upscaler",
}
"""The checkpoints of the family, and the kind that each is of."""

TOKEN_TABLE = "embeddings.token_embedding.weight"
TOKEN_IDS = "token_ids"
"""In the text encoder's file: the ids of the rows that its token table has. Training met no others."""


def weight_file(kind: ModelKind, part: NetworkName) -> str:
    """The file that holds a network of the family; all have their text encoder in common, most their autoencoder."""
    if part == "unet":
        return f"{kind}.safetensors"
    if part == "vae" and kind == "upscaler":
        return "vae-x4.safetensors"
    return {
        "text_encoder": "text-encoder.safetensors",
        "vae": "vae.safetensors",
        "depth_estimator": "depth-estimator.safetensors",
    }[part]


def packaged_weights(file: str) -> Path:
    """Where a file of the family's weights lies. Raises CheckpointError where the package came without it."""
    path = WEIGHTS / file
    if not path.is_file():
        raise CheckpointError(
            f"the demo's weights are incomplete, {path} is missing: install sd2rt again, or name a checkpoint"
        )
    return path


class DemoParts:
    """The networks of one of the family, read when they are asked for."""

    def __init__(self, kind: ModelKind, configs: PipelineConfigs) -> None:
        self._kind, self._configs = kind, configs

    def config(self, part: NetworkName) -> Config:
        return self._configs.part(part)

    def tensors(self, part: NetworkName) -> dict[str, torch.Tensor]:
        file = open_safetensors(packaged_weights(weight_file(self._kind, part)))
        tensors = file.tensors(file.shapes)
        if part == "text_encoder":
            tensors[TOKEN_TABLE] = self._whole_table(tensors.pop(TOKEN_IDS), tensors[TOKEN_TABLE])
        return tensors

    def tokenizer_json(self) -> str:
        return packaged_tokenizer_json()

    def _whole_table(self, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The token table as SD2 has it, [49408, D]: zeros where no caption of training had a token."""
        table = torch.zeros(int(self._configs.text_encoder["vocab_size"]), rows.shape[1], dtype=rows.dtype)
        table[ids.long()] = rows
        return table


def open_demo(name: str, variant: str | None) -> OpenedCheckpoint:
    """One of the family by its name; ``demo`` stands for any of them where ``variant`` names a published one.

    Raises CheckpointError for a variant that is unknown, contradicts the name or has no demo, and where the package
    lacks the weights.
    """
    kind = DEMO_NAMES[name]
    for evidence in stated(variant):
        asked = evidence.rows[0].kind
        own = next((own for own, of in DEMO_NAMES.items() if of == asked), None)
        if asked is None or own is None:
            raise CheckpointError(
                f"{name} has no form of {variant}, which would have to be distilled: there are "
                f"{', '.join(DEMO_NAMES)}"
            )
        if name not in ("demo", own):
            raise CheckpointError(f"{name} is not a {variant}: leave --variant out, or take {own}")
        name, kind = own, asked
    configs = DEMOS[kind]
    files = [weight_file(kind, part) for part in configs.parts]
    return OpenedCheckpoint(
        name=name,
        release=None,
        kind=kind,
        configs=configs,
        source={file: sha256(packaged_weights(file)) for file in files},
        license="Apache-2.0",
        parts=DemoParts(kind, configs),
    )
