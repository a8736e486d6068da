"""Scales of layers from PEFT's configuration, for adapters that do not store an alpha for each layer."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sd2rt.engines.errors import RequestError
from sd2rt.engines.json_text import parse_json
from sd2rt.engines.lora.keys import PEFT, Module, Network
from sd2rt.engines.lora.patterns import Patterns
from sd2rt.engines.printable import shown
from sd2rt.engines.regular_file import read_regular

_METADATA = "lora_adapter_metadata"
_CONFIG = "adapter_config.json"
# PEFT writes about a kilobyte, and a line for each layer with an alpha of its own.
_MAX_CONFIG_BYTES = 4 << 20
_NETWORKS: tuple[Network, ...] = ("unet", "text_encoder")
_KINDS = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha", "IA3": "alpha"}
"""PEFT's types that can be merged, with the name of alpha in their configuration."""
_DEFAULT_RANK = _DEFAULT_ALPHA = 8.0
"""PEFT's defaults."""


@dataclass(frozen=True, slots=True)
class _Config:
    """The fields of PEFT's configuration that determine the scale of a layer."""

    alpha: float
    alphas: Patterns
    rank: float
    ranks: Patterns
    rank_stabilized: bool
    """Divide by the square root of the rank: rsLoRA, arXiv:2312.03732."""
    feedforward: str | Collection[str]
    """Layers whose inputs (IA)^3 scales: a regular expression, or ends of paths."""
    decomposed: bool
    """Each layer has norms: DoRA."""

    def factor(self, paths: tuple[str, ...], rank: int | None) -> float:
        alpha = self.alphas.value(paths, self.alpha)
        divisor = self.ranks.value(paths, self.rank) if rank is None else rank
        return alpha / (math.sqrt(divisor) if self.rank_stabilized else divisor)


@dataclass(frozen=True, slots=True)
class Alphas:
    """Scales of layers that do not have one in the file."""

    configs: Mapping[Network, _Config] = field(default_factory=dict)
    beside: bytes = b""
    """Contents of the ``adapter_config.json`` that was read; empty if none was."""

    def factor(self, module: Module, rank: int | None) -> float:
        """Multiplier of a layer's change; 1 if there is no configuration.

        Args:
            rank: of the layer's tensors; None if they have none.
        """
        config = self.configs.get(module.network)
        return 1.0 if config is None else config.factor(_paths(module), rank)

    def decomposed(self, module: Module) -> bool:
        """Return whether a layer needs norms."""
        config = self.configs.get(module.network)
        return config is not None and config.decomposed

    def feedforward(self, module: Module) -> bool:
        """Return whether (IA)^3 scales the inputs of a layer."""
        config = self.configs.get(module.network)
        if config is None:
            return False
        paths, layers = _paths(module), config.feedforward
        if isinstance(layers, str):
            return Patterns({f"^(?:{layers})$": 1.0}).value(paths, 0.0) == 1.0
        return any(path == layer or path.endswith(f".{layer}") for path in paths for layer in layers)


def _paths(module: Module) -> tuple[str, ...]:
    """Paths of a layer in PEFT's model: transformers' releases differ in the text encoder's."""
    if module.network == "text_encoder":
        return (f"text_model.{module.path}", module.path)
    return (module.path,)


def read_alphas(path: Path, keys: Iterable[str], metadata: Mapping[str, str]) -> Alphas:
    """Read the configuration from a file's metadata (diffusers), or from ``adapter_config.json`` beside it (PEFT).

    Raises:
        RequestError: it is damaged or of a kind that cannot be merged, or a file in PEFT's layout has none.
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
    if kind not in _KINDS:
        *others, last = _KINDS
        raise RequestError(
            f"{source} is of the type {shown(str(kind), 40)!r}, which is not supported: use one of "
            f"{', '.join(others)} or {last}"
        )
    name = _KINDS[kind]
    rank = _number(source, "r", content.get("r", _DEFAULT_RANK))
    if rank <= 0:
        raise RequestError(f"{source}: r is {rank:g}, expected a number above 0: get the LoRA again")
    feedforward = content.get("feedforward_modules") or ()
    if not isinstance(feedforward, str) and not (
        isinstance(feedforward, list | tuple) and all(isinstance(layer, str) for layer in feedforward)
    ):
        raise RequestError(f"{source}: feedforward_modules are no names of layers: get the file again")
    return _Config(
        _number(source, name, content.get(name, _DEFAULT_ALPHA)),
        _patterns(source, "alpha_pattern", content, lowest=-math.inf),
        rank,
        _patterns(source, "rank_pattern", content, lowest=0),
        bool(content.get("use_rslora")),
        feedforward,
        bool(content.get("use_dora")),
    )


def _patterns(source: str, name: str, content: Mapping[str, Any], lowest: float) -> Patterns:
    patterns = content.get(name) or {}
    if not isinstance(patterns, dict):
        raise RequestError(f"{source}: {name} is not a JSON object: get the LoRA again")
    values = {pattern: _number(source, name, value) for pattern, value in patterns.items()}
    if any(value <= lowest for value in values.values()):
        raise RequestError(f"{source}: {name} holds {min(values.values()):g}: get the LoRA again")
    try:
        return Patterns(values)
    except ValueError as error:
        raise RequestError(f"{source}: {name} {error}") from None


def _number(source: str, name: str, value: Any) -> float:
    # Integers have few enough digits for a float: see parse_json.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError(f"{source}: {name} is {str(value)[:40]!r}, expected a number: get the LoRA again")
    return float(value)
