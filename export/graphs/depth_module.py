"""PyTorch module that is exported as a bundle's depth estimator."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import DPTForDepthEstimation
from transformers.models.bit.modeling_bit import WeightStandardizedConv2d

from sd2rt.engines.errors import CheckpointError


class DepthEstimator(nn.Module):
    """Map a normalised image [B, 3, H, W] to DPT's raw output [B, H, W]: inverse depth up to scale and offset.

    H and W are the configuration's image_size, 384 in SD2; other sizes would need resampled position
    embeddings. Input and output are float32; the network runs in its own dtype.

    Weights are shared with ``model`` and keep their names, with two differences. The ResNet's convolution weights
    are standardised once, here, instead of at every call. Layers with unused results are dropped, so that every
    weight of this module is in its graph. A bundle's weight map therefore has the ResNet's
    standardised kernels; the original ones cannot be recovered from it.

    Raises:
        CheckpointError: ``model`` is not a DPT-hybrid, as SD2's is.
    """

    def __init__(self, model: DPTForDepthEstimation) -> None:
        super().__init__()
        if not model.config.is_hybrid:
            raise CheckpointError(
                "the depth estimator is a DPT without SD2's ResNet backbone (is_hybrid is false): use the published "
                "checkpoint's configuration and weights"
            )
        shared = {id(parameter): parameter for parameter in model.parameters()}
        copied = copy.deepcopy(model, shared)
        # sdpa is exported as one operator. The key "" excludes the ResNet, which has no attention.
        copied.set_attn_implementation({"": "sdpa"})
        self.dpt, self.neck, self.head = copied.dpt, copied.neck, copied.head
        # The final norm's output is never read, and the deepest fusion layer has no coarser scale to add.
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
    """Convolution preceded by TensorFlow's SAME padding, which may be asymmetric: Conv2d has no option for that.

    The padding follows from the input's size, so it is constant in the graph.
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
    """Replace each weight-standardised convolution below ``module`` by a plain one."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, WeightStandardizedConv2d):
                setattr(parent, name, _PaddedConv2d(child, _standardized(child.weight.detach(), child.eps)))


def _standardized(weight: Tensor, eps: float) -> Tensor:
    """Normalise ``weight`` [O, I, kh, kw] to mean 0 and variance 1 per output channel: arXiv:1903.10520."""
    exact = weight.double()
    variance, mean = torch.var_mean(exact, dim=(1, 2, 3), correction=0, keepdim=True)
    return ((exact - mean) / torch.sqrt(variance + eps)).to(weight.dtype)
