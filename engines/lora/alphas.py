"""Alphas from PEFT's configuration, for LoRA files that do not store an alpha for each layer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sd2rt.engines.errors import RequestError
from sd2rt.engines.json_text import parse_json
from sd2rt.engines.lora.keys import PEFT, Module, Network
from sd2rt.engines.regular_file import read_regular

_METADATA = "lora_adapter_metadata"
_CONFIG = "adapter_config.json"
# PEFT writes about a kilobyte, and a line for each layer with an alpha of its own.
_MAX_CONFIG_BYTES = 4 << 20
_PATTERN = re.compile(r"\^?([\w.]+)\$?")
_NETWORKS: tuple[Network, ...] = ("unet", "text_encoder")


@dataclass(frozen=True, slots=True)
class _Config:
    """The fields of PEFT's configuration that determine the scale of a layer."""

    alpha: float
    patterns: Mapping[str, float]
    """Alphas of individual layers, by the end of the layer's path."""
    rank_stabilized: bool
    """Divide by the square root of the rank: rsLoRA, arXiv:2312.03732."""

    def factor(self, module: Module, rank: int) -> float:
        alpha = next(
            (alpha for path, alpha in self.patterns.items() if f".{module.path}".endswith(f".{path}")),
            self.alpha,
        )
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


@dataclass(frozen=True, slots=True)
class Alphas:
    """Alphas of layers that do not have one in the file."""

    configs: Mapping[Network, _Config] = field(default_factory=dict)
    beside: bytes = b""
    """Contents of the ``adapter_config.json`` that was read; empty if none was."""

    def factor(self, module: Module, rank: int) -> float:
        """Multiplier of a layer's ``up @ down``; 1 if there is no configuration."""
        config = self.configs.get(module.network)
        return 1.0 if config is None else config.factor(module, rank)


def read_alphas(path: Path, keys: Iterable[str], metadata: Mapping[str, str]) -> Alphas:
    """Read the configuration from a file's metadata (diffusers), or from ``adapter_config.json`` beside it (PEFT).

    Raises:
        RequestError: it is damaged or not of a plain LoRA, or a file in PEFT's layout has none.
    """
    if _METADATA in metadata:
        content = _json(f"{path}'s {_METADATA}", metadata[_METADATA])
        configs: dict[Network, _Config] = {}
        for network in _NETWORKS:
            entries = {
                key.removeprefix(f"{network}."): value
                for key, value in content.items()
                if key.startswith(f"{network}.")
            }
            if entries:
                configs[network] = _config(f"{path}'s {_METADATA}", entries)
        return Alphas(configs)
    if not any(key.startswith(PEFT) for key in keys):
        return Alphas()
    beside = path.with_name(_CONFIG)
    try:
        data = read_regular(beside, _MAX_CONFIG_BYTES)
    except OSError as error:
        raise RequestError(
            f"{path} is in PEFT's layout, whose alpha is in {beside}, which cannot be read ({error.strerror}): "
            "put that file there"
        ) from None
    config = _config(str(beside), _json(str(beside), data))
    return Alphas(dict.fromkeys(_NETWORKS, config), data)


def _json(source: str, text: str | bytes) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise RequestError(f"{source} is not a JSON object: get the LoRA again")
    return content


def _config(source: str, content: Mapping[str, Any]) -> _Config:
    kind = content.get("peft_type", "LORA")
    if kind != "LORA":
        raise RequestError(
            f"{source} is of the type {str(kind)[:40]!r}, which is not supported: use a plain LoRA"
        )
    if content.get("use_dora"):
        raise RequestError(f"{source} is of a DoRA, which is not supported: use a plain LoRA")
    alpha_pattern = content.get("alpha_pattern") or {}
    if not isinstance(alpha_pattern, dict):
        raise RequestError(f"{source}: alpha_pattern is not a JSON object: get the LoRA again")
    patterns = {}
    for pattern, alpha in alpha_pattern.items():
        # PEFT accepts any regular expression; trainers write paths, or the ends of paths.
        match = _PATTERN.fullmatch(pattern)
        if match is None:
            raise RequestError(
                f"{source}: alpha_pattern {pattern[:80]!r} is not a layer's path: other patterns are not supported"
            )
        patterns[match[1].removeprefix("text_model.")] = _number(source, "alpha_pattern", alpha)
    # 8 is PEFT's default.
    alpha = _number(source, "lora_alpha", content.get("lora_alpha", 8))
    return _Config(alpha, patterns, bool(content.get("use_rslora")))


def _number(source: str, name: str, value: Any) -> float:
    # Integers have few enough digits for a float: see parse_json.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError(f"{source}: {name} is {str(value)[:40]!r}, expected a number: get the LoRA again")
    return float(value)
