"""Names of a UNet's layers in original (LDM) checkpoints, which ComfyUI and some trainers write."""

from __future__ import annotations

import re
from collections.abc import Iterable

_BLOCK = re.compile(
    r"(?P<side>down|up)_blocks\.(?P<block>\d+)\.(?P<kind>resnets|attentions|downsamplers|upsamplers)\."
    r"(?P<index>\d+)(?P<rest>(?:\..+)?)"
)
_MIDDLE = re.compile(r"mid_block\.(?P<kind>resnets|attentions)\.(?P<index>\d+)(?P<rest>(?:\..+)?)")
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    ".norm1": ".in_layers.0",
    ".conv1": ".in_layers.2",
    ".time_emb_proj": ".emb_layers.1",
    ".norm2": ".out_layers.0",
    ".conv2": ".out_layers.3",
    ".conv_shortcut": ".skip_connection",
}


def ldm_names(paths: Iterable[str]) -> dict[str, str]:
    """Return diffusers' paths of a UNet's layers by their LDM paths.

    Args:
        paths: all layers of one UNet, by which its blocks are counted.
    """
    paths = list(paths)
    blocks = [match for match in map(_BLOCK.fullmatch, paths) if match is not None]
    resnets = [int(each["index"]) for each in blocks if each["side"] == "down" and each["kind"] == "resnets"]
    layers = max(resnets, default=0) + 1
    with_attention = {
        int(each["block"]) for each in blocks if each["side"] == "up" and each["kind"] == "attentions"
    }
    return {name: path for path in paths if (name := _ldm_name(path, layers, with_attention)) is not None}


def _ldm_name(path: str, layers: int, with_attention: set[int]) -> str | None:
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    match = _MIDDLE.fullmatch(path)
    if match is not None:
        if match["kind"] == "attentions":
            return f"middle_block.{2 * int(match['index']) + 1}{match['rest']}"
        return f"middle_block.{2 * int(match['index'])}{_resnet(match['rest'])}"
    match = _BLOCK.fullmatch(path)
    if match is None:
        return None
    block, index, rest = int(match["block"]), int(match["index"]), match["rest"]
    # Each block has its layers and, going down, a downsampler as a block of its own; going up, one layer more.
    first = block * (layers + 1)
    match match["side"], match["kind"]:
        case "down", "resnets":
            return f"input_blocks.{first + index + 1}.0{_resnet(rest)}"
        case "down", "attentions":
            return f"input_blocks.{first + index + 1}.1{rest}"
        case "down", "downsamplers":
            return f"input_blocks.{first + layers + 1}.0{rest.replace('.conv', '.op', 1)}"
        case "up", "resnets":
            return f"output_blocks.{first + index}.0{_resnet(rest)}"
        case "up", "attentions":
            return f"output_blocks.{first + index}.1{rest}"
        case "up", "upsamplers":
            return f"output_blocks.{first + layers}.{2 if block in with_attention else 1}{rest}"
    return None


def _resnet(rest: str) -> str:
    return _RESNET.get(rest, rest)
