"""Result of opening a checkpoint, common to all formats."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from sd2rt.engines.bundle.model_kinds import Defaults, ModelKind, TaskName
from sd2rt.engines.errors import CheckpointError
from sd2rt.engines.regular_file import read_regular
from sd2rt.export.checkpoints.pipeline_configs import Config, NetworkName, PipelineConfigs

_LICENSE = re.compile(r"(?i)(licen[sc]e|copying|notice)([-_.][\w.-]*)?")
_CARD = re.compile(r"(?i)(readme|model_?card)\.md")
_FRONT_MATTER = b"---"
_MAX_FILES = 8
_MAX_BYTES = 1 << 20
LICENSE_PATTERNS = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "README.md")
"""Names of these files in a repository on the Hub."""


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
    license_files: Mapping[str, bytes] = field(default_factory=dict)
    """Licence texts and model cards beside the weights, by name."""


def license_files(folder: Path) -> dict[str, bytes]:
    """Contents of the licence texts and model cards in a folder, by their names.

    A README without the YAML of a model card is about something else, such as a folder of many checkpoints.

    Raises:
        CheckpointError: one cannot be read.
    """
    found: dict[str, bytes] = {}
    for name in sorted(os.listdir(folder)):
        is_card = _CARD.fullmatch(name) is not None
        path = folder / name
        if not (is_card or _LICENSE.fullmatch(name)) or not os.path.isfile(path) or len(found) == _MAX_FILES:
            continue
        try:
            # No text of more bytes is a licence.
            content = read_regular(path, _MAX_BYTES) if path.stat().st_size <= _MAX_BYTES else b""
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
        if content and (not is_card or content.lstrip().startswith(_FRONT_MATTER)):
            found[name] = content
    return found
