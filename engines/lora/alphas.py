"""The alphas of a LoRA whose file does not give one for each layer: PEFT's configuration, beside it or within."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sd2rt.engines.errors import RequestError
from sd2rt.engines.lora.keys import PEFT, Module, Network

_METADATA = "lora_adapter_metadata"
_CONFIG = "adapter_config.json"
_PATTERN = re.compile(r"\^?([\w.]+)\$?")
_NETWORKS: tuple[Network, ...] = ("unet", "text_encoder")


@dataclass(frozen=True, slots=True)
class _Config:
    """PEFT's, as far as it says what the factors are multiplied by."""

    alpha: float
    patterns: Mapping[str, float]
    """By the end of a layer's path."""
    root: bool
    """Divided by the root of the rank: rsLoRA, arXiv:2312.03732."""

    def factor(self, module: Module, rank: int) -> float:
        alpha = next(
            (alpha for path, alpha in self.patterns.items() if f".{module.path}".endswith(f".{path}")),
            self.alpha,
        )
        return alpha / (math.sqrt(rank) if self.root else rank)


@dataclass(frozen=True, slots=True)
class Alphas:
    """What a file says of its layers' alphas, where they have none of their own."""

    configs: Mapping[Network, _Config] = field(default_factory=dict)
    beside: bytes = b""
    """What was read beside the file."""

    def factor(self, module: Module, rank: int) -> float:
        """What a layer's ``up @ down`` is multiplied by: 1 where nothing is said."""
        config = self.configs.get(module.network)
        return 1.0 if config is None else config.factor(module, rank)


def read_alphas(path: Path, keys: Iterable[str], metadata: Mapping[str, str]) -> Alphas:
    """The configuration in a file's metadata, as diffusers writes it, or the one that PEFT writes beside it.

    Raises:
        RequestError: it is damaged, or not a plain LoRA's; or PEFT's own file has none.
    """
    if _METADATA in metadata:
        content = _json(f"{path}'s {_METADATA}", metadata[_METADATA])
        configs: dict[Network, _Config] = {}
        for network in _NETWORKS:
            own = {
                key.removeprefix(f"{network}."): value
                for key, value in content.items()
                if key.startswith(f"{network}.")
            }
            if own:
                configs[network] = _config(f"{path}'s {_METADATA}", own)
        return Alphas(configs)
    if not any(key.startswith(PEFT) for key in keys):
        return Alphas()
    beside = path.with_name(_CONFIG)
    try:
        data = beside.read_bytes()
    except OSError as error:
        raise RequestError(
            f"{path} is PEFT's, which says its alpha in {beside}, and that cannot be read ({error.strerror}): "
            "put it beside it"
        ) from None
    config = _config(str(beside), _json(str(beside), data))
    return Alphas(dict.fromkeys(_NETWORKS, config), data)


def _json(source: str, text: str | bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise RequestError(f"{source} is not JSON of names: get the LoRA again")
    return content


def _config(source: str, content: Mapping[str, Any]) -> _Config:
    kind = content.get("peft_type", "LORA")
    if kind != "LORA":
        raise RequestError(f"{source} is of {str(kind)[:40]!r}, which is not supported: give a plain LoRA")
    if content.get("use_dora"):
        raise RequestError(f"{source} is of DoRA, which is not supported: give a plain LoRA")
    given = content.get("alpha_pattern") or {}
    if not isinstance(given, dict):
        raise RequestError(f"{source}: alpha_pattern is no JSON of names: get the LoRA again")
    patterns = {}
    for pattern, alpha in given.items():
        # PEFT takes expressions; what writes them writes paths, or the ends of paths.
        found = _PATTERN.fullmatch(pattern)
        if found is None:
            raise RequestError(
                f"{source}: alpha_pattern {pattern[:80]!r} is no layer's path: it is not supported"
            )
        patterns[found[1].removeprefix("text_model.")] = _number(source, "alpha_pattern", alpha)
    # PEFT's own default.
    alpha = _number(source, "lora_alpha", content.get("lora_alpha", 8))
    return _Config(alpha, patterns, bool(content.get("use_rslora")))


def _number(source: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError(f"{source}: {name} is {str(value)[:40]!r}, expected a number: get the LoRA again")
    return float(value)
