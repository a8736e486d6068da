"""Check the key map against MiDaS's network, reimplemented here with the names of MiDaS and timm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import DPTConfig, DPTForDepthEstimation

from sd2rt.export.checkpoints.ldm.midas_keys import PREFIX, UNUSED, midas_layout

SIZE, WIDTH, HEADS, STEM, FUSION = 64, 32, 4, 8, 24
CHANNELS, DEPTHS, NECK = (32, 64, 128), (1, 2, 3), (32, 64, 40, 48)
LAYERS, GROUPS = 4, 2
PUBLISHED: dict[str, Any] = {
    "is_hybrid": True,
    "backbone_config": {
        "model_type": "bit",
        "depths": [3, 4, 9],
        "embedding_dynamic_padding": True,
        "global_padding": "SAME",
        "layer_type": "bottleneck",
        "out_features": ["stage1", "stage2", "stage3"],
    },
    "neck_hidden_sizes": [256, 512, 768, 768],
    "reassemble_factors": [1, 1, 1, 0.5],
}
TINY: dict[str, Any] = {
    **PUBLISHED,
    "image_size": SIZE,
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "backbone_out_indices": [0, 1, 2, 3],
    "backbone_featmap_shape": [1, CHANNELS[-1], 4, 4],
    "neck_hidden_sizes": list(NECK),
    "fusion_hidden_size": FUSION,
    "backbone_config": {
        **PUBLISHED["backbone_config"],
        "depths": list(DEPTHS),
        "hidden_sizes": list(CHANNELS),
        "embedding_size": STEM,
        "num_groups": GROUPS,
    },
}


def same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's SAME padding: of an odd total, the extra pixel goes to the right and bottom."""
    total = max(kernel - stride, 0)
    return F.pad(x, [total // 2, total - total // 2] * 2)


class StdConv(nn.Conv2d):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) / (variance + 1e-8).sqrt()
        return F.conv2d(same(x, self.kernel_size[0], self.stride[0]), weight, None, self.stride)


class Downsample(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = StdConv(inputs, outputs, 1, stride)
        self.norm = nn.GroupNorm(GROUPS, outputs)


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, first: bool) -> None:
        super().__init__()
        middle = outputs // 4
        self.downsample = Downsample(inputs, outputs, stride) if first else None
        self.conv1, self.norm1 = StdConv(inputs, middle, 1), nn.GroupNorm(GROUPS, middle)
        self.conv2, self.norm2 = StdConv(middle, middle, 3, stride), nn.GroupNorm(GROUPS, middle)
        self.conv3, self.norm3 = StdConv(middle, outputs, 1), nn.GroupNorm(GROUPS, outputs)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample.norm(self.downsample.conv(x))
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return F.relu(self.norm3(self.conv3(x)) + shortcut)


class Stage(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        inputs, outputs = (STEM, *CHANNELS)[number], CHANNELS[number]
        self.blocks = nn.Sequential(
            Bottleneck(inputs, outputs, 1 if number == 0 else 2, True),
            *(Bottleneck(outputs, outputs, 1, False) for _ in range(DEPTHS[number] - 1)),
        )


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / (WIDTH // HEADS) ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, 1e-12), nn.LayerNorm(WIDTH, 1e-12)
        self.attn = Attention()
        self.mlp: Any = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))  # type: ignore[no-any-return]


class Readout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.GELU())


class Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(FUSION, FUSION, 3, padding=1)
        self.conv2 = nn.Conv2d(FUSION, FUSION, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))  # type: ignore[no-any-return]


class Fusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(FUSION, FUSION, 1)
        self.resConfUnit1, self.resConfUnit2 = Unit(), Unit()

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        x = self.resConfUnit2(x if other is None else x + self.resConfUnit1(other))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return self.out_conv(x)  # type: ignore[no-any-return]


class Midas(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pretrained: Any = nn.Module()
        self.scratch: Any = nn.Module()
        vit = self.pretrained.model = nn.Module()
        vit.cls_token = nn.Parameter(torch.empty(1, 1, WIDTH))
        vit.pos_embed = nn.Parameter(torch.empty(1, 1 + (SIZE // 16) ** 2, WIDTH))
        embed = vit.patch_embed = nn.Module()
        embed.backbone = nn.Module()
        embed.backbone.stem = nn.Module()
        embed.backbone.stem.conv = StdConv(3, STEM, 7, 2)
        embed.backbone.stem.norm = nn.GroupNorm(GROUPS, STEM)
        embed.backbone.stages = nn.Sequential(*(Stage(number) for number in range(3)))
        embed.proj = nn.Conv2d(CHANNELS[-1], WIDTH, 1)
        vit.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        vit.norm = nn.LayerNorm(WIDTH)
        vit.head = nn.Linear(WIDTH, 1000)
        # MiDaS has modules that only reshape at 1 and 2.
        shape = nn.Identity()
        self.pretrained.act_postprocess3 = nn.Sequential(
            Readout(), shape, shape, nn.Conv2d(WIDTH, NECK[2], 1)
        )
        self.pretrained.act_postprocess4 = nn.Sequential(
            Readout(), shape, shape, nn.Conv2d(WIDTH, NECK[3], 1), nn.Conv2d(NECK[3], NECK[3], 3, 2, 1)
        )
        for number, channels in enumerate(NECK, 1):
            setattr(self.scratch, f"layer{number}_rn", nn.Conv2d(channels, FUSION, 3, padding=1, bias=False))
            setattr(self.scratch, f"refinenet{number}", Fusion())
        self.scratch.output_conv = nn.Sequential(
            nn.Conv2d(FUSION, FUSION // 2, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(FUSION // 2, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 1),
            nn.ReLU(),
        )

    def forward(self, image: Tensor) -> Tensor:
        vit, scratch = self.pretrained.model, self.scratch
        backbone, scales = vit.patch_embed.backbone, []
        x = F.max_pool2d(same(F.relu(backbone.stem.norm(backbone.stem.conv(image))), 3, 2), 3, 2)
        for stage in backbone.stages:
            x = stage.blocks(x)
            scales.append(x)
        x = torch.cat(
            [vit.cls_token.expand(len(image), -1, -1), vit.patch_embed.proj(x).flatten(2).mT], dim=1
        )
        x = vit.blocks[:-1](x + vit.pos_embed)
        layers = [*scales[:2], self.reassemble(3, x), self.reassemble(4, vit.blocks[-1](x))]
        path = None
        for number in (4, 3, 2, 1):
            scale = getattr(scratch, f"layer{number}_rn")(layers[number - 1])
            fuse = getattr(scratch, f"refinenet{number}")
            path = fuse(scale) if path is None else fuse(path, scale)
        return scratch.output_conv(path).squeeze(1)  # type: ignore[no-any-return]

    def reassemble(self, number: int, tokens: Tensor) -> Tensor:
        post = getattr(self.pretrained, f"act_postprocess{number}")
        x = torch.cat([tokens[:, 1:], tokens[:, :1].expand_as(tokens[:, 1:])], -1)
        return post[3:](post[0].project(x).mT.unflatten(2, (SIZE // 16, SIZE // 16)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def estimator() -> Any:
    generator = torch.Generator().manual_seed(0)
    network = DPTForDepthEstimation(DPTConfig(**TINY)).eval()
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            parameter.normal_(std=0.1, generator=generator)
            if "norm" in key and key.endswith("weight"):
                parameter += 1
        network.head.head[4].bias.fill_(1.0)
    return network


def stacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {entry.key: torch.cat([tensors[k] for k in entry.members]) for entry in midas_layout(tensors)}


def test_midas_computes_what_transformers_does(estimator: Any) -> None:
    midas = Midas().eval()
    state = {key.removeprefix(PREFIX): tensor for key, tensor in stacked(estimator.state_dict()).items()}
    missing, unexpected = midas.load_state_dict(state, strict=False)
    assert unexpected == []
    assert [PREFIX + key for key in missing if not UNUSED.fullmatch(PREFIX + key)] == []
    assert len(missing) == 2

    image = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = estimator(image).predicted_depth
        ours = midas(image)
    assert expected.std() > 0.05
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * float(expected.max()))


def test_every_weight_is_kept_once(estimator: Any) -> None:
    tensors = estimator.state_dict()
    layout = midas_layout(tensors)
    members = [key for entry in layout for key in entry.members]
    assert sorted(members) == sorted(tensors)
    assert len({entry.key for entry in layout}) == len(layout)
    held = stacked(tensors)
    for entry in layout:
        parts = torch.split(held[entry.key], [len(tensors[key]) for key in entry.members])
        assert all(torch.equal(part, tensors[key]) for part, key in zip(parts, entry.members, strict=True))


def test_the_published_size() -> None:
    """512-depth-ema.ckpt and 512-base-ema.ckpt differ by the estimator, its classifier, and one input channel of
    the UNet; PyTorch's archive adds some 350 bytes for each of the 368 tensors."""
    with torch.device("meta"):
        tensors = DPTForDepthEstimation(DPTConfig(**PUBLISHED)).state_dict()
    layout = midas_layout(tensors)
    parameters = sum(tensor.numel() for tensor in tensors.values()) + 1000 * 768 + 1000 + 320 * 9
    overhead = 5_707_592_867 - 5_214_864_007 - 4 * parameters
    assert len(layout) == 366
    assert 300 < overhead / (len(layout) + 2) < 400


def test_projections_are_stacked_in_timms_order(estimator: Any) -> None:
    keys = sorted(estimator.state_dict(), reverse=True)
    entry = next(e for e in midas_layout(keys) if e.key == PREFIX + "pretrained.model.blocks.1.attn.qkv.bias")
    stem = "dpt.encoder.layer.1.attention.attention."
    assert entry.members == (f"{stem}query.bias", f"{stem}key.bias", f"{stem}value.bias")
    assert not entry.pointwise


def test_other_names_are_refused() -> None:
    for key in ("dpt.pooler.dense.weight", "auxiliary_head.head.0.weight", "neck.convs.4.weight"):
        with pytest.raises(ValueError, match=key):
            midas_layout([key])
    assert not UNUSED.fullmatch(PREFIX + "scratch.output_conv.0.weight")
