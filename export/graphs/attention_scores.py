"""Attention scores beyond half precision: measure them, and compute them in float32.

The opset's ``softmax_precision`` does not help: ONNX Runtime's CPU kernel ignores it, and rounds the scores to
float16 before the softmax.
"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

_SIDE = 32
"""Side of the measured latents; what a pixel attends to depends little on it."""
_SAMPLES = (0.0, 0.5, 1.0)
"""Timesteps, as fractions of the noise schedule."""


def largest_scores(unet: UNet2DConditionModel) -> float:
    """Measure the largest magnitude of a UNet's attention scores, the scaled products of queries and keys.

    Inputs are seeded noise: latents and text states of unit variance, as a trained network has them.

    Args:
        unet: in float32, in which the scores do not overflow.
    """
    largest = 0.0

    def measure(attention: Attention, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        nonlocal largest
        hidden = arguments[0] if arguments else options["hidden_states"]
        context = options.get("encoder_hidden_states")
        query, key = attention.to_q(hidden), attention.to_k(hidden if context is None else context)
        query, key = (_heads(each, attention.heads) for each in (query, key))
        scores = float((query @ key.transpose(-1, -2)).abs().max()) * attention.scale
        # max() would drop NaN.
        largest = scores if math.isnan(scores) or scores > largest else largest

    attentions = [module for module in unet.modules() if isinstance(module, Attention)]
    hooks = [module.register_forward_pre_hook(measure, with_kwargs=True) for module in attentions]
    generator = torch.Generator().manual_seed(0)
    config = unet.config
    latents = torch.randn((1, config.in_channels, _SIDE, _SIDE), generator=generator)
    text = torch.randn((1, 77, config.cross_attention_dim), generator=generator)
    labels = None if config.num_class_embeds is None else torch.zeros(1, dtype=torch.int64)
    try:
        with torch.inference_mode():
            for fraction in _SAMPLES:
                unet(latents, fraction * 999, text, class_labels=labels, return_dict=False)
    finally:
        for hook in hooks:
            hook.remove()
    return largest if math.isfinite(largest) else float(torch.finfo(torch.float32).max)


def _heads(states: Tensor, heads: int) -> Tensor:
    batch, tokens, _ = states.shape
    return states.reshape(batch, tokens, heads, -1).transpose(1, 2)  # [B, heads, tokens, D]


def compute_in_float32(model: ir.Model) -> None:
    """Convert the inputs of each attention of a float16 graph to float32, and its result back."""
    graph = model.graph
    for node in [node for node in graph if node.op_type == "Attention"]:
        for index, value in enumerate(node.inputs):
            assert value is not None
            cast = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT})
            cast.outputs[0].name = f"{value.name}.float32.{node.name}.{index}"
            cast.outputs[0].shape, cast.outputs[0].dtype = value.shape, ir.DataType.FLOAT
            graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])
        result = node.outputs[0]
        back = ir.node("Cast", [result], attributes={"to": ir.DataType.FLOAT16})
        back.outputs[0].name = f"{result.name}.float16"
        back.outputs[0].shape, back.outputs[0].dtype = result.shape, ir.DataType.FLOAT16
        result.replace_all_uses_with(back.outputs[0])
        back.replace_input_with(0, result)
        result.dtype = ir.DataType.FLOAT
        graph.insert_after(node, back)
