"""The PyTorch module whose graph becomes a bundle's depth estimator."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import DPTForDepthEstimation
from transformers.models.bit.modeling_bit import WeightStandardizedConv2d

from sd2rt.engines.errors import CheckpointError


class DepthEstimator(nn.Module):
    """A normalised image [B, 3, H, W] to DPT's raw output [B, H, W]: inverse depth up to scale and offset.

    H and W are the configuration's image_size, 384 in SD2: any other would need the position embeddings
    resampled. Input and output are float32; the network runs in its own dtype.

    Weights are shared with ``model`` and keep its names. But where the ResNet standardises the weights of its
    convolutions at every call, here that is done once; and what ``model`` computes for nothing, or never
    calls, is left out, so that each weight of this module is one of its graph. A bundle's map of weights thus has
    the standardised kernels of the ResNet under their names, and nothing that these could be made of again.

    Raises CheckpointError where ``model`` is a DPT of another kind than SD2's.
    """

    def __init__(self, model: DPTForDepthEstimation) -> None:
        super().__init__()
        if not model.config.is_hybrid:
            raise CheckpointError(
                "the depth estimator is a DPT without the ResNet that SD2's has (is_hybrid is false): use the "
                "published checkpoint's configuration and weights"
            )
        shared = {id(parameter): parameter for parameter in model.parameters()}
        own = copy.deepcopy(model, shared)
        # The implementation that reaches the graph as one operator; "" leaves out the ResNet, which has none.
        own.set_attn_implementation({"": "sdpa"})
        self.dpt, self.neck, self.head = own.dpt, own.neck, own.head
        # Nothing reads the tokens after the final norm, and the deepest fusion has no other scale to add.
        self.dpt.layernorm = nn.Identity()
        self.neck.fusion_stage.layers[0].residual_layer1 = nn.Identity()
        self.vit_scales = set(model.config.backbone_out_indices[2:])
        _standardize(self)

    def forward(self, image: Tensor) -> Tensor:
        embeddings = self.dpt.embeddings
        maps = embeddings.backbone(image.to(embeddings.cls_token.dtype)).feature_maps  # strides 4, 8, 16
        tokens = embeddings.projection(maps[-1]).flatten(2).transpose(1, 2)  # [B, HW/256, D]
        tokens = torch.cat([embeddings.cls_token.expand(image.shape[0], -1, -1), tokens], dim=1)
        tokens = tokens + embeddings.position_embeddings
        scales = [*maps[:2]]
        for index, layer in enumerate(self.dpt.encoder.layer):
            tokens = layer(tokens)
            if index in self.vit_scales:
                scales.append(tokens)
        return self.head(self.neck(scales)).float()  # type: ignore[no-any-return]


class _PaddedConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding before it, which can be uneven and then is no option of Conv2d.

    The amount follows from the input's size, and so is a constant of the graph.
    """

    def __init__(self, conv: WeightStandardizedConv2d, weight: Tensor) -> None:
        with torch.device("meta"):
            super().__init__(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,
                conv.stride,
                conv.padding,
                conv.dilation,
                conv.groups,
                bias=False,
            )
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), conv.bias
        self.pad = nn.Identity() if conv.pad is None else conv.pad

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.pad(x))


def _standardize(module: nn.Module) -> None:
    """Put a plain convolution in the place of each weight-standardised one below ``module``."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, WeightStandardizedConv2d):
                setattr(parent, name, _PaddedConv2d(child, _standardized(child.weight.detach(), child.eps)))


def _standardized(weight: Tensor, eps: float) -> Tensor:
    """``weight`` [O, I, kh, kw] with mean 0 and variance 1 over each output channel: arXiv:1903.10520."""
    exact = weight.double()
    variance, mean = torch.var_mean(exact, dim=(1, 2, 3), correction=0, keepdim=True)
    return ((exact - mean) / torch.sqrt(variance + eps)).to(weight.dtype)
