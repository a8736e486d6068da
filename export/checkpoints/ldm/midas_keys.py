"""Map transformers' names of SD2's depth estimator to names in an original single-file checkpoint.

The original is MiDaS's DPT-hybrid, built from timm's vision transformer and ResNet. Both sides have the same weights,
including the first residual unit of the deepest fusion block, which neither evaluates. MiDaS's file also has a
classification head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sd2rt.export.checkpoints.ldm.tensor import PREFIXES, LdmTensor

PREFIX = PREFIXES["depth_estimator"]
UNUSED = re.compile(r"depth_model\.model\.pretrained\.model\.head\.(weight|bias)")
"""Keys that nothing reads: the ImageNet classifier of timm's vision transformer."""


def midas_layout(keys: Iterable[str]) -> list[LdmTensor]:
    """The tensors of an LDM file with the depth estimator's weights, for transformers' names.

    Raises:
        ValueError: a name is not of a DPT-hybrid depth estimator.
    """
    layout: dict[str, list[str]] = {}
    for key in keys:
        layout.setdefault(PREFIX + _rename(key), []).append(key)
    # timm stacks the three projections in this order, independent of the order of keys.
    return [LdmTensor(key, tuple(sorted(members, key=_projection_order))) for key, members in layout.items()]


_VIT = "pretrained.model."
_RESNET = _VIT + "patch_embed.backbone."
# Prefixes of names on both sides; # matches a number.
_NAMES = [
    ("dpt.embeddings.cls_token", _VIT + "cls_token"),
    ("dpt.embeddings.position_embeddings", _VIT + "pos_embed"),
    ("dpt.embeddings.projection.", _VIT + "patch_embed.proj."),
    ("dpt.embeddings.backbone.bit.embedder.convolution.", _RESNET + "stem.conv."),
    ("dpt.embeddings.backbone.bit.embedder.norm.", _RESNET + "stem.norm."),
    ("dpt.embeddings.backbone.bit.encoder.stages.#.layers.#.", _RESNET + r"stages.\1.blocks.\2."),
    ("dpt.encoder.layer.#.layernorm_before.", _VIT + r"blocks.\1.norm1."),
    ("dpt.encoder.layer.#.attention.attention.query.", _VIT + r"blocks.\1.attn.qkv."),
    ("dpt.encoder.layer.#.attention.attention.key.", _VIT + r"blocks.\1.attn.qkv."),
    ("dpt.encoder.layer.#.attention.attention.value.", _VIT + r"blocks.\1.attn.qkv."),
    ("dpt.encoder.layer.#.attention.output.dense.", _VIT + r"blocks.\1.attn.proj."),
    ("dpt.encoder.layer.#.layernorm_after.", _VIT + r"blocks.\1.norm2."),
    ("dpt.encoder.layer.#.intermediate.dense.", _VIT + r"blocks.\1.mlp.fc1."),
    ("dpt.encoder.layer.#.output.dense.", _VIT + r"blocks.\1.mlp.fc2."),
    ("dpt.layernorm.", _VIT + "norm."),
    ("head.head.#.", r"scratch.output_conv.\1."),
]
for _scale in range(4):
    # MiDaS counts from 1, and numbers its fusion blocks by the scale that each adds. transformers numbers fusion
    # layers in order of evaluation, deepest scale first. Items 1 and 2 of MiDaS's act_postprocess have no weights.
    _post, _fusion = f"pretrained.act_postprocess{_scale + 1}.", f"scratch.refinenet{4 - _scale}."
    _NAMES += [
        (f"neck.reassemble_stage.readout_projects.{_scale}.", _post + "0.project."),
        (f"neck.reassemble_stage.layers.{_scale}.projection.", _post + "3."),
        (f"neck.reassemble_stage.layers.{_scale}.resize.", _post + "4."),
        (f"neck.convs.{_scale}.", f"scratch.layer{_scale + 1}_rn."),
        (f"neck.fusion_stage.layers.{_scale}.projection.", _fusion + "out_conv."),
        (
            f"neck.fusion_stage.layers.{_scale}.residual_layer#.convolution#.",
            _fusion + r"resConfUnit\1.conv\2.",
        ),
    ]
_RULES = [(re.compile(re.escape(old).replace(r"\#", r"(\d+)")), new) for old, new in _NAMES]


def _rename(key: str) -> str:
    for pattern, new in _RULES:
        if match := pattern.match(key):
            return match.expand(new) + key[match.end() :]
    raise ValueError(f"{key} is not a weight of a DPT-hybrid depth estimator")


def _projection_order(key: str) -> int:
    return next((i for i, name in enumerate((".query.", ".key.", ".value.")) if name in key), 0)
