"""Weight names and shapes of two small networks, which the LoRAs of the tests change."""

from __future__ import annotations

from typing import Any

WIDTH = 48
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
UNET: dict[str, tuple[int, ...]] = {
    **{f"{BLOCK}.attn1.to_{name}": (16, 16) for name in ("q", "k", "v", "out.0")},
    **{f"{BLOCK}.attn2.to_{name}": (16, WIDTH) for name in ("k", "v")},
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_q": (32, 32),
    f"{BLOCK}.ff.net.0.proj": (128, 16),
    f"{BLOCK}.ff.net.2": (16, 64),
    "down_blocks.0.attentions.0.proj_in": (16, 16),
    "up_blocks.1.resnets.0.time_emb_proj": (32, 64),
    "time_embedding.linear_1": (64, 16),
    "conv_in": (16, 4, 3, 3),
    "down_blocks.0.resnets.0.conv1": (16, 16, 3, 3),
    "down_blocks.0.downsamplers.0.conv": (16, 16, 3, 3),
    "up_blocks.1.resnets.0.conv_shortcut": (32, 64, 1, 1),
}
TEXT: dict[str, tuple[int, ...]] = {
    f"encoder.layers.{layer}.{name}": shape
    for layer in range(3)
    for name, shape in {
        **{f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in ("q", "k", "v", "out")},
        "mlp.fc1": (64, WIDTH),
        "mlp.fc2": (WIDTH, 64),
    }.items()
}
SHAPES: Any = {
    "denoiser": {f"{path}.weight": shape for path, shape in UNET.items()} | {"conv_in.bias": (16,)},
    "text_encoder": {f"{path}.weight": shape for path, shape in TEXT.items()},
}
NETWORKS = {"unet": SHAPES["denoiser"], "text_encoder": SHAPES["text_encoder"]}
