"""Merge LoRAs into a checkpoint's weights before export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from sd2rt.engines.bundle.manifest import MERGED_LORA
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.errors import CheckpointError, RequestError
from sd2rt.engines.lora.file import Lora
from sd2rt.engines.lora.merge import PARTS, Change, changes
from sd2rt.export.checkpoints.checkpoint import Checkpoint
from sd2rt.export.checkpoints.networks import current_name, skeleton
from sd2rt.export.checkpoints.pipeline_configs import Config, NetworkName
from sd2rt.export.checkpoints.source import NetworkSource


def with_loras(checkpoint: Checkpoint, loras: Sequence[Lora]) -> Checkpoint:
    """The checkpoint with LoRAs merged into its UNet and text encoder.

    Weights are summed in float32 and rounded once, to the dtype that a network is loaded in. The hashes, names and
    scales of the LoRAs are added to the checkpoint's source, so that its bundle has another build key.

    Raises:
        CheckpointError: a LoRA was made for another model, or two have the same name.
    """
    if not loras:
        return checkpoint
    try:
        changed = changes(loras, {part: _shapes(checkpoint, network) for network, part in PARTS.items()})
    except RequestError as error:
        raise CheckpointError(str(error)) from None
    return replace(
        checkpoint,
        source=checkpoint.source | {_source_name(lora): lora.sha256 for lora in loras},
        parts=_MergedParts(checkpoint.parts, changed),
    )


def _source_name(lora: Lora) -> str:
    return f"{MERGED_LORA}{lora.name} at {lora.scales}"


def _shapes(checkpoint: Checkpoint, network: NetworkName) -> dict[str, tuple[int, ...]]:
    state = skeleton(network, checkpoint.parts.config(network)).state_dict()
    # Named as in a bundle's parts, which do not include the token table.
    shapes = {key.removeprefix("text_model."): tuple(tensor.shape) for key, tensor in state.items()}
    return {key: shape for key, shape in shapes.items() if not key.startswith("embeddings.")}


@dataclass(frozen=True, slots=True)
class _MergedParts:
    """Networks of a checkpoint with some weights changed."""

    original: NetworkSource
    changed: Mapping[PartName, Mapping[str, Change]]

    def config(self, part: NetworkName) -> Config:
        return self.original.config(part)

    def tokenizer_json(self) -> str:
        return self.original.tokenizer_json()

    def tensors(self, part: NetworkName) -> dict[str, torch.Tensor]:
        tensors = self.original.tensors(part)
        changed = self.changed.get(PARTS[part], {}) if part in ("unet", "text_encoder") else {}
        try:
            return {
                key: _merged(changed.get(current_name(part, key)), tensor) for key, tensor in tensors.items()
            }
        except RequestError as error:
            raise CheckpointError(str(error)) from None


def _merged(change: Change | None, tensor: torch.Tensor) -> torch.Tensor:
    return tensor if change is None else torch.from_numpy(change.added_to(tensor.float().numpy()))
