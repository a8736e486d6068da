"""One set of random low-rank changes as files of every layout that trainers write."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

F32 = NDArray[np.float32]
Layout = Literal["kohya", "diffusers-old", "diffusers", "diffusers-peft", "peft"]

_BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
ATTENTION: dict[str, list[str]] = {
    "unet": [
        f"{_BLOCK}.attn1.to_q",
        f"{_BLOCK}.attn1.to_out.0",
        f"{_BLOCK}.attn2.to_k",
        f"{_BLOCK}.attn2.to_v",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_q",
    ],
    "text_encoder": [f"encoder.layers.1.self_attn.{name}_proj" for name in ("q", "k", "v", "out")],
}
"""Layers that every layout can name."""
LINEAR: dict[str, list[str]] = {
    "unet": [
        *ATTENTION["unet"],
        f"{_BLOCK}.ff.net.0.proj",
        f"{_BLOCK}.ff.net.2",
        "down_blocks.0.attentions.0.proj_in",
        "up_blocks.1.resnets.0.time_emb_proj",
        "time_embedding.linear_1",
    ],
    "text_encoder": [*ATTENTION["text_encoder"], "encoder.layers.0.mlp.fc1", "encoder.layers.2.mlp.fc2"],
}
CONVOLUTIONS: dict[str, list[str]] = {
    "unet": [
        "conv_in",
        "down_blocks.0.resnets.0.conv1",
        "down_blocks.0.downsamplers.0.conv",
        "up_blocks.1.resnets.0.conv_shortcut",
    ],
    "text_encoder": [],
}


@dataclass(frozen=True)
class Factors:
    down: F32
    up: F32
    alpha: float

    def delta(self) -> NDArray[np.float64]:
        """As the two layers compute it, one after the other, in float64."""
        down, up = (factor.astype(np.float64) for factor in (self.down, self.up))
        equation = "or,ri->oi" if down.ndim == 2 else "orxy,rikl->oikl"
        product: NDArray[np.float64] = np.einsum(equation, up, down)
        return self.alpha / len(down) * product


Set = dict[tuple[str, str], Factors]
"""By network and layer."""


def draw(
    layers: dict[str, list[str]],
    shapes: dict[str, dict[str, tuple[int, ...]]],
    seed: int = 0,
    alpha: float | None = None,
    strength: float = 0.3,
) -> Set:
    """Factors of rank 2 to 4, whose product is ``strength`` as large as a weight.

    Args:
        shapes: of the weights, by network and name.
        alpha: None for one that differs by layer.
    """
    rng = np.random.default_rng(seed)
    made: Set = {}
    for network, paths in layers.items():
        for path in paths:
            rows, columns, *kernel = shapes[network][f"{path}.weight"]
            rank = int(rng.integers(2, 5))
            own = rank * float(rng.uniform(0.5, 1.5)) if alpha is None else alpha
            fan_in = columns * int(np.prod(kernel))
            size = np.sqrt(strength * np.sqrt(rank) / own / np.sqrt(fan_in))
            down = rng.standard_normal((rank, columns, *kernel)) * size
            up = rng.standard_normal((rows, rank, *(1 for _ in kernel))) * size
            made[network, path] = Factors(down.astype(np.float32), up.astype(np.float32), own)
    return made


def write(path: Path, layout: Layout, factors: Set, dtype: Any = np.float32) -> Path:
    """A file of them. PEFT's has one network's, and ``adapter_config.json`` beside it."""
    tensors: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    config: dict[str, Any] = {}
    for (network, module), own in factors.items():
        full = f"text_model.{module}" if network == "text_encoder" else module
        values = {"down": own.down.astype(dtype), "up": own.up.astype(dtype)}
        if layout == "kohya":
            stem = f"{'lora_unet_' if network == 'unet' else 'lora_te_'}{full.replace('.', '_')}"
            tensors |= {f"{stem}.lora_{role}.weight": value for role, value in values.items()}
            tensors[f"{stem}.alpha"] = np.array(own.alpha, np.float32)
        elif layout == "diffusers-old":
            parent, _, last = full.removesuffix(".0").rpartition(".")
            old = f"to_{last.removesuffix('_proj')}" if network == "text_encoder" else last
            place = parent if network == "text_encoder" else f"{parent}.processor"
            tensors |= {f"{network}.{place}.{old}_lora.{role}.weight": v for role, v in values.items()}
        elif layout == "diffusers":
            word = "lora" if network == "unet" else "lora_linear_layer"
            tensors |= {f"{network}.{full}.{word}.{role}.weight": v for role, v in values.items()}
            if own.alpha != len(own.down):
                # diffusers itself does not write them, nor reads them from a file.
                tensors[f"{network}.{full}.alpha"] = np.array(own.alpha, np.float32)
        else:
            prefix = f"{network}." if layout == "diffusers-peft" else "base_model.model."
            names = {"down": "lora_A", "up": "lora_B"}
            tensors |= {f"{prefix}{full}.{names[role]}.weight": v for role, v in values.items()}
            start = f"{network}." if layout == "diffusers-peft" else ""
            config[f"{start}peft_type"] = "LORA"
            config.setdefault(f"{start}lora_alpha", own.alpha)
            config.setdefault(f"{start}r", len(own.down))
            config.setdefault(f"{start}rank_pattern", {})[full] = len(own.down)
            config.setdefault(f"{start}alpha_pattern", {})[full] = own.alpha
            config.setdefault(f"{start}target_modules", []).append(full)
    path.parent.mkdir(parents=True, exist_ok=True)
    if layout == "diffusers-peft":
        metadata["lora_adapter_metadata"] = json.dumps(config)
    if layout == "peft":
        (path.parent / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, path, metadata=metadata | {"format": "pt"})
    return path


def demo_shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of the weights that a LoRA of the demo can change, by network."""
    from sd2rt.export.checkpoints.networks import skeleton
    from sd2rt.export.checkpoints.tiny_configs import DEMOS

    networks: dict[str, Any] = {
        "unet": skeleton("unet", DEMOS["base"].unet),
        "text_encoder": skeleton("text_encoder", DEMOS["base"].text_encoder),
    }
    return {
        network: {name: tuple(value.shape) for name, value in module.state_dict().items()}
        for network, module in networks.items()
    }
