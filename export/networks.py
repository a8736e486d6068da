"""From a configuration and named tensors to a PyTorch network, with every key accounted for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from sd2rt.engines.errors import CheckpointError
from sd2rt.export.pipeline_configs import PartName

# A buffer that older transformers releases saved and newer ones make themselves.
_HARMLESS = re.compile(r"(^|\.)position_ids$")

# AutoencoderKL's attention before diffusers 0.17, when its projections were 1x1 convolutions under other names.
_OLD_ATTENTION = re.compile(r"(\.mid_block\.attentions\.\d+\.)(query|key|value|proj_attn)\.(weight|bias)$")
_NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def skeleton(part: PartName, config: Mapping[str, Any]) -> nn.Module:
    """The network that a configuration describes, on the meta device: names and shapes without memory.

    Raises CheckpointError when the configuration does not describe one.
    """
    try:
        with torch.device("meta"):
            if part == "text_encoder":
                return CLIPTextModel(CLIPTextConfig(**config))
            network = UNet2DConditionModel if part == "unet" else AutoencoderKL
            return network.from_config(dict(config))  # type: ignore[no-any-return]
    except (TypeError, ValueError, KeyError, IndexError, NotImplementedError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"the configuration of {part} does not describe an SD2 network ({reason}): "
            "use the published checkpoint's configuration files"
        ) from None


def assemble(
    part: PartName,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    origin: str,
) -> nn.Module:
    """Make a network and give it exactly the tensors it wants, copied and cast to ``dtype``.

    Args:
        part: which network.
        config: its configuration as diffusers or transformers saves it.
        tensors: its weights under diffusers' or transformers' names, old spellings included.
        dtype: what floating-point weights become.
        origin: where the tensors come from, for messages.

    Returns the network in eval mode, without gradients. Raises CheckpointError naming the keys that are missing,
    unexpected or of another shape: a network never keeps a weight that the checkpoint did not give it.
    """
    network = skeleton(part, config)
    expected = network.state_dict()
    given = {_current_name(part, key): tensor for key, tensor in tensors.items() if not _HARMLESS.search(key)}
    given = {key: _as_linear(key, tensor, expected) for key, tensor in given.items()}

    missing = sorted(expected.keys() - given.keys())
    if missing:
        raise CheckpointError(
            f"{origin}: {part} lacks {_some(missing)}: the file is incomplete or of another model; get it again"
        )
    unexpected = sorted(given.keys() - expected.keys())
    if unexpected:
        raise CheckpointError(
            f"{origin}: {part} has {_some(unexpected)} that an SD2 {part} does not: it is another model's"
        )
    for key, tensor in given.items():
        if tensor.shape != expected[key].shape:
            raise CheckpointError(
                f"{origin}: {part} key {key} has shape {list(tensor.shape)}, expected "
                f"{list(expected[key].shape)}: weights and configuration are of different models"
            )
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{origin}: {part} key {key} is {str(tensor.dtype).removeprefix('torch.')}, expected a "
                "floating-point type: quantised checkpoints are not supported, use the fp32 or fp16 one"
            )

    # A copy even where no cast is needed: a view of a memory-mapped file is unaligned and dies with the file.
    own = {key: tensor.to(dtype, copy=True) for key, tensor in given.items()}
    network.load_state_dict(own, assign=True, strict=True)
    if isinstance(network, CLIPTextModel):
        positions = network.embeddings.position_ids.shape[-1]
        network.embeddings.position_ids = torch.arange(positions).expand(1, -1)
    return network.requires_grad_(False).eval()


def _current_name(part: PartName, key: str) -> str:
    if part == "text_encoder":
        return key.removeprefix("text_model.")
    if part == "vae":
        return _OLD_ATTENTION.sub(lambda m: f"{m[1]}{_NEW_ATTENTION[m[2]]}.{m[3]}", key)
    return key


def _as_linear(key: str, tensor: torch.Tensor, expected: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A 1x1 convolution's weight [O, I, 1, 1] as the linear layer's [O, I] that took its place."""
    wanted = expected.get(key)
    if wanted is not None and wanted.ndim == 2 and tuple(tensor.shape) == (*wanted.shape, 1, 1):
        return tensor[:, :, 0, 0]
    return tensor


def _some(keys: Iterable[str]) -> str:
    """The first of some keys, and how many more there are."""
    first, *others = keys
    return f"{first} and {len(others)} more keys" if others else f"the key {first}"
