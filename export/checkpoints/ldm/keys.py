"""Map diffusers' names of SD2's weights to names in an original single-file (LDM) checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sd2rt.export.checkpoints.ldm.midas_keys import midas_layout
from sd2rt.export.checkpoints.ldm.tensor import PREFIXES, LdmTensor
from sd2rt.export.checkpoints.pipeline_configs import NetworkName, PipelineConfigs

EMA_PREFIX = "model_ema."


def ldm_layout(part: NetworkName, keys: Iterable[str], configs: PipelineConfigs) -> list[LdmTensor]:
    """The LDM tensors with the weights of ``part``, in the order of ``keys``, diffusers' names."""
    if part == "depth_estimator":
        return midas_layout(keys)
    layout: dict[str, LdmTensor] = {}
    for key in keys:
        name = _RENAME[part](key, configs)
        fused = layout.get(name)
        members = (key,) if fused is None else (*fused.members, key)
        layout[name] = LdmTensor(PREFIXES[part] + name, members, _is_pointwise(part, name))
    # torch.nn.MultiheadAttention stacks its projections in this order, independent of the order of keys.
    return [
        LdmTensor(entry.key, tuple(sorted(entry.members, key=_projection_order)), entry.pointwise)
        for entry in layout.values()
    ]


def ema_key(key: str) -> str:
    """Key of LDM's moving average of the weight ``model.<...>``: its name without dots."""
    return EMA_PREFIX + key.removeprefix("model.").replace(".", "")


def _is_pointwise(part: NetworkName, name: str) -> bool:
    return part == "vae" and re.search(r"\.attn_1\.(q|k|v|proj_out)\.weight$", name) is not None


def _projection_order(key: str) -> int:
    return next((i for i, name in enumerate((".q_proj.", ".k_proj.", ".v_proj.")) if name in key), 0)


_UNET_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_BLOCK = re.compile(
    r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)


def _unet(key: str, configs: PipelineConfigs) -> str:
    if block := _UNET_BLOCK.fullmatch(key):
        side, number, kind, layer, rest = block[1], int(block[2]), block[3], int(block[4]), block[5]
        per_block = int(configs.unet["layers_per_block"]) + 1
        if kind == "downsamplers":
            return f"input_blocks.{(number + 1) * per_block}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            # The upsampler follows the block's last resnet and its attention, if it has one.
            attends = "CrossAttn" in configs.unet["up_block_types"][number]
            return f"output_blocks.{(number + 1) * per_block - 1}.{2 if attends else 1}.{rest}"
        first = 1 + number * per_block if side == "down" else number * per_block
        stem = f"{'input' if side == 'down' else 'output'}_blocks.{first + layer}"
        return f"{stem}.1.{rest}" if kind == "attentions" else f"{stem}.0.{_rename_head(rest, _UNET_RESNET)}"
    renamed = _rename_head(key, _UNET_OUTER)
    return _rename_after(renamed, ("middle_block.0.", "middle_block.2."), _UNET_RESNET)


_VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_VAE_BLOCK = re.compile(
    r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)"
)
_VAE_MID = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def vae_name(key: str, levels: int) -> str:
    """LDM's name of an autoencoder's weight, without a prefix, for an autoencoder of so many levels."""
    if block := _VAE_BLOCK.fullmatch(key):
        side, number, kind, layer, rest = block[1], int(block[2]), block[3], block[4], block[5]
        if side == "decoder":
            # LDM counts the decoder's levels from the full resolution, diffusers from the latents.
            number = levels - 1 - number
        level = f"{side}.{'down' if side == 'encoder' else 'up'}.{number}"
        if kind == "resnets":
            return f"{level}.block.{layer}.{_rename_head(rest, _VAE_RESNET)}"
        return f"{level}.{kind.removesuffix('rs')}.{rest}"
    if mid := _VAE_MID.fullmatch(key):
        side, kind, layer, rest = mid[1], mid[2], int(mid[3]), mid[4]
        if kind == "attentions":
            return f"{side}.mid.attn_{layer + 1}.{_rename_head(rest, _VAE_ATTENTION)}"
        return f"{side}.mid.block_{layer + 1}.{_rename_head(rest, _VAE_RESNET)}"
    return key.replace("conv_norm_out", "norm_out")


def _vae(key: str, configs: PipelineConfigs) -> str:
    return vae_name(key, len(configs.vae["block_out_channels"]))


_TEXT_OUTER = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
}
_TEXT_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "self_attn.q_proj.": "attn.in_proj_",
    "self_attn.k_proj.": "attn.in_proj_",
    "self_attn.v_proj.": "attn.in_proj_",
}
_TEXT_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.(.+)")


def _text_encoder(key: str, configs: PipelineConfigs) -> str:
    if block := _TEXT_BLOCK.fullmatch(key):
        return f"transformer.resblocks.{block[1]}.{_rename_head(block[2], _TEXT_LAYER)}"
    return _rename_head(key, _TEXT_OUTER)


_RENAME = {"text_encoder": _text_encoder, "unet": _unet, "vae": _vae}


def _rename_head(key: str, names: dict[str, str]) -> str:
    """Rename the leading components of ``key``, if ``names`` has them."""
    for old, new in names.items():
        if key == old or key.startswith(old if old.endswith(".") else old + "."):
            return new + key[len(old) :]
    return key


def _rename_after(key: str, stems: tuple[str, ...], names: dict[str, str]) -> str:
    """Rename the components of ``key`` that follow one of ``stems``."""
    stem = next((stem for stem in stems if key.startswith(stem)), None)
    return key if stem is None else stem + _rename_head(key.removeprefix(stem), names)
