"""What opening a checkpoint finds, whichever form it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from sd2rt.engines.bundle.model_kinds import ModelKind
from sd2rt.export.checkpoints.pipeline_configs import Config, NetworkName, PipelineConfigs


class NetworkSource(Protocol):
    """Where a checkpoint's networks come from: a folder, a file, or a random generator."""

    def config(self, part: NetworkName) -> Config:
        """The part's configuration as diffusers or transformers saves it."""
        ...

    def tensors(self, part: NetworkName) -> dict[str, torch.Tensor]:
        """The part's weights under diffusers' or transformers' names, in memory or mapped from a file."""
        ...

    def tokenizer_json(self) -> str:
        """The tokenizer in the Hugging Face tokenizers format."""
        ...


@dataclass(frozen=True, slots=True)
class OpenedCheckpoint:
    """A checkpoint that was recognised as one that sd2rt can build."""

    name: str
    release: str | None
    kind: ModelKind
    configs: PipelineConfigs
    source: dict[str, str]
    license: str
    parts: NetworkSource
