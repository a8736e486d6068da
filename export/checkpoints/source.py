"""Result of opening a checkpoint, common to all formats."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
import yaml

from sd2rt.engines.bundle.model_kinds import Defaults, ModelKind, TaskName
from sd2rt.engines.errors import CheckpointError
from sd2rt.engines.hub.card import LICENSES
from sd2rt.engines.regular_file import read_regular
from sd2rt.export.checkpoints.pipeline_configs import Config, NetworkName, PipelineConfigs

_LICENSE = re.compile(r"(?i)(licen[sc]e|copying|notice)([-_.][\w.-]*)?")
_CARD = re.compile(r"(?i)(readme|model_?card)\.md")
_FRONT_MATTER = re.compile(rb"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", re.DOTALL)
_MAX_FILES = 8
_MAX_BYTES = 1 << 20
_MAX_CARD_BYTES = 1 << 16
"""Of a model card's YAML."""
_MAX_NAME = 100

_NAMES = {**LICENSES, "stabilityai-ai-community": "Stability AI Community License"}
"""Names of licences by their ids on the Hub or as ``license_name``; other ids are names as they are."""
_TITLES = {
    b"creativeml open rail++-m": "CreativeML Open RAIL++-M",
    b"stability ai community license": "Stability AI Community License",
    b"apache license version 2.0": "Apache-2.0",
    b"mit license": "MIT",
}
"""Beginnings of licences' texts, in lower case and with single spaces."""
_TITLE_BYTES = 400

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
        if content and (not is_card or _FRONT_MATTER.match(content)):
            found[name] = content
    return found


def stated_license(files: Mapping[str, bytes]) -> str | None:
    """Name of the licence that a model card states, or that a text is of; None if neither is known.

    Args:
        files: contents by name, as :func:`license_files` returns them.
    """
    for name, content in files.items():
        if _CARD.fullmatch(name) and (stated := _of_card(content)) is not None:
            return stated
    for name, content in files.items():
        if not _CARD.fullmatch(name):
            beginning = b" ".join(content[:_TITLE_BYTES].lower().split())
            titles = {known for title, known in _TITLES.items() if title in beginning}
            if len(titles) == 1:
                return titles.pop()
    return None


def _of_card(content: bytes) -> str | None:
    match = _FRONT_MATTER.match(content)
    if match is None or len(match[1]) > _MAX_CARD_BYTES:
        return None
    try:
        facts: object = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        # A card is for readers: a broken one does not stop a build.
        return None
    if not isinstance(facts, dict):
        return None
    stated = facts.get("license")
    if isinstance(stated, list) and len(stated) == 1:
        stated = stated[0]
    if stated == "other":
        stated = facts.get("license_name")
    if not isinstance(stated, str) or not stated.isprintable() or not 0 < len(stated) <= _MAX_NAME:
        return None
    return _NAMES.get(stated.lower(), stated)
