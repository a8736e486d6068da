"""Upsampling in a UNet back to the size before its downsampling, for latents of any side."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import interpolate


def take_any_side(unet: UNet2DConditionModel) -> None:
    """Let a UNet upsample to the sizes of its skip connections, whatever the sides of its latents.

    diffusers does the same, but decides by the sides of each input: an exported graph would serve only sides of
    one branch. Where all sides halve without a remainder, upsampling doubles them.
    """
    if not unet.num_upsamplers:
        return
    sizes: list[torch.Size] = []

    def forget(module: nn.Module, args: object) -> None:
        sizes.clear()

    def remember(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        sizes.append(args[0].shape[2:])

    def enlarge(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (interpolate(args[0], size=sizes.pop(), mode="nearest"),)

    unet.register_forward_pre_hook(forget)
    for block in unet.down_blocks:
        for layer in block.downsamplers or ():
            layer.register_forward_pre_hook(remember)
    for block in unet.up_blocks:
        for layer in block.upsamplers or ():
            layer.interpolate = False
            layer.register_forward_pre_hook(enlarge)
    # Every side is a multiple of 2 ** 0: the UNet's own test decides without the sides.
    unet.num_upsamplers = 0
