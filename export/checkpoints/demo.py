"""The demo: small trained models of SD2's architecture that ship with the package, one for each kind."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from sd2rt.engines.bundle.model_kinds import ModelKind
from sd2rt.engines.demo.files import DEMO_NAMES, TOKEN_IDS, TOKEN_TABLE, WEIGHTS, demo_tasks
from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints.identify import stated
from sd2rt.export.checkpoints.pipeline_configs import Config, NetworkName, PipelineConfigs
from sd2rt.export.checkpoints.source import OpenedCheckpoint
from sd2rt.export.checkpoints.tiny_configs import DEMOS
from sd2rt.export.checkpoints.tokenizer_json import packaged_tokenizer_json
from sd2rt.export.checkpoints.weight_file import open_safetensors, sha256


def weight_file(kind: ModelKind, part: NetworkName) -> str:
    """Name of the file with a network of the demo. All kinds share a text encoder, most share an autoencoder."""
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
    """Path of a file of the demo's weights.

    Raises:
        CheckpointError: the package lacks it.
    """
    path = WEIGHTS / file
    if not os.path.isfile(path):
        raise CheckpointError(
            f"the demo's weights are incomplete, {path} is missing: reinstall sd2rt, or name a checkpoint"
        )
    return path


class DemoParts:
    """Networks of one demo checkpoint, read on demand."""

    def __init__(self, kind: ModelKind, configs: PipelineConfigs) -> None:
        self._kind, self._configs = kind, configs

    def config(self, part: NetworkName) -> Config:
        return self._configs.part(part)

    def tensors(self, part: NetworkName) -> dict[str, torch.Tensor]:
        file = open_safetensors(packaged_weights(weight_file(self._kind, part)))
        tensors = file.tensors(file.shapes)
        if part == "text_encoder":
            tensors[TOKEN_TABLE] = self._full_table(tensors.pop(TOKEN_IDS), tensors[TOKEN_TABLE])
        return tensors

    def tokenizer_json(self) -> str:
        return packaged_tokenizer_json()

    def _full_table(self, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The token table in SD2's size, [49408, D]: zeros for tokens in no training caption."""
        table = torch.zeros(int(self._configs.text_encoder["vocab_size"]), rows.shape[1], dtype=rows.dtype)
        table[ids.long()] = rows
        return table


def open_demo(name: str, variant: str | None) -> OpenedCheckpoint:
    """Open a demo checkpoint by name. With ``demo``, ``variant`` selects the kind.

    Raises:
        CheckpointError: the variant is unknown, contradicts the name or has no demo, or the package lacks the
            weights.
    """
    kind = DEMO_NAMES[name]
    for evidence in stated(variant):
        stated_kind = evidence.rows[0].kind
        demo_name = next((demo for demo, of_kind in DEMO_NAMES.items() if of_kind == stated_kind), None)
        if stated_kind is None or demo_name is None:
            raise CheckpointError(
                f"there is no demo of {variant}, which would have to be distilled: choose one of "
                f"{', '.join(DEMO_NAMES)}"
            )
        if name not in ("demo", demo_name):
            raise CheckpointError(f"{name} is not a {variant}: leave --variant out, or use {demo_name}")
        name, kind = demo_name, stated_kind
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
        tasks=demo_tasks(kind),
    )
