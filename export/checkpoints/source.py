"""Result of opening a checkpoint, common to all formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from sd2rt.engines.bundle.model_kinds import Defaults, ModelKind, TaskName
from sd2rt.export.checkpoints.pipeline_configs import Config, NetworkName, PipelineConfigs


class NetworkSource(Protocol):
    """Source of a checkpoint's networks: a folder, a file, or the packaged demo."""

    def config(self, part: NetworkName) -> Config:
        """The part's configuration as saved by diffusers or transformers."""
        ...

    def tensors(self, part: NetworkName) -> dict[str, torch.Tensor]:
        """The part's weights by their names in diffusers or transformers, in memory or mapped from a file."""
        ...

    def tokenizer_json(self) -> str:
        """The tokenizer in the Hugging Face tokenizers format."""
        ...


@dataclass(frozen=True, slots=True)
class OpenedCheckpoint:
    """A checkpoint that was recognised, and that sd2rt can build."""

    name: str
    release: str | None
    kind: ModelKind
    configs: PipelineConfigs
    source: dict[str, str]
    license: str
    parts: NetworkSource
    tasks: dict[TaskName, Defaults] | None = None
    """Tasks with the checkpoint's own defaults; None for those of its kind."""
