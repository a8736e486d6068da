"""Create a PyTorch network from a configuration and named tensors, with every key accounted for."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import CLIPTextConfig, CLIPTextModel, DPTConfig, DPTForDepthEstimation

from sd2rt.engines.errors import CheckpointError
from sd2rt.engines.printable import shown
from sd2rt.engines.weights.shapes import linear_shape
from sd2rt.export.checkpoints.pipeline_configs import NetworkName

_MAX_MODULES = 20_000
"""Ten times those of the largest network, the UNet."""

_STRAY_KEYS: tuple[tuple[NetworkName | None, str, re.Pattern[str]], ...] = (
    (None, "position ids", re.compile(r"(.*\.)?position_ids$")),
    (None, "moving averages", re.compile(r"(.*\.)?(model_ema|ema_model|ema)\.")),
    (None, "counters of moving averages", re.compile(r"(.*\.)?(num_updates|decay)$")),
    ("vae", "training losses", re.compile(r"(loss|discriminator|lpips|perceptual_loss)\.")),
    ("text_encoder", "the visual tower", re.compile(r"(visual|vision_model|visual_projection)\b")),
    ("text_encoder", "projections", re.compile(r"text_projection(\.weight)?$")),
    ("text_encoder", "logit scales", re.compile(r"logit_(scale|bias)$")),
    ("text_encoder", "the attention mask", re.compile(r"attn_mask$")),
)
"""Keys that tools save beside a network's weights: its part or None for all, a name, and a pattern."""
_USUAL = ("position ids", "counters of moving averages", "projections", "logit scales", "the attention mask")
"""Kinds that published files have, too."""

# AutoencoderKL's attention before diffusers 0.17: its projections were 1x1 convolutions with other names.
_OLD_ATTENTION = re.compile(r"(\.mid_block\.attentions\.\d+\.)(query|key|value|proj_attn)\.(weight|bias)$")
_NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def skeleton(part: NetworkName, config: Mapping[str, Any]) -> nn.Module:
    """Create a configuration's network on the meta device: names and shapes, without memory for weights.

    Raises:
        CheckpointError: the configuration does not describe a network.
    """
    try:
        with torch.device("meta"), _limited_modules():
            if part == "text_encoder":
                return cast(nn.Module, CLIPTextModel(CLIPTextConfig(**config)))
            if part == "depth_estimator":
                # The configuration classes keep nested dictionaries by reference and change them.
                return cast(nn.Module, DPTForDepthEstimation(DPTConfig(**copy.deepcopy(dict(config)))))
            network = UNet2DConditionModel if part == "unet" else AutoencoderKL
            return cast(nn.Module, network.from_config(dict(config)))
    except Exception as error:
        # The constructors get arbitrary JSON: any exception means that it does not describe their network.
        reason = shown(str(error) or type(error).__name__, 200)
        raise CheckpointError(
            f"the configuration of {part} does not describe an SD2 network ({reason}): "
            "use the published checkpoint's configuration files"
        ) from None


@contextmanager
def _limited_modules() -> Iterator[None]:
    """Stop the creation of a network with far more modules than SD2's: a file may claim any number of layers."""
    count = 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1
        if count > _MAX_MODULES:
            raise ValueError(f"it has more than {_MAX_MODULES} modules")

    hook = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()


def assemble(
    part: NetworkName,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    origin: str,
) -> nn.Module:
    """Create a network and load exactly the tensors that it expects, copied and cast to ``dtype``.

    Args:
        part: the network's name.
        config: its configuration as saved by diffusers or transformers.
        tensors: its weights under diffusers' or transformers' names, old ones included.
        dtype: dtype of the loaded weights.
        origin: source of the tensors, for messages.

    Returns:
        The network in eval mode, without gradients. All its weights come from ``tensors``.

    Raises:
        CheckpointError: keys are missing, unexpected, of another shape, not floating-point or not finite.
    """
    network = skeleton(part, config)
    expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    _check(part, expected, shapes, origin)
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() and stray_kind(part, current_name(part, key)) is None:
            raise CheckpointError(
                f"{origin}: {part} key {key} is {str(tensor.dtype).removeprefix('torch.')}, expected a "
                "floating-point type: quantised checkpoints are not supported, use the fp32 or fp16 one"
            )

    # Copy even where no cast is needed: a view of a memory-mapped file is unaligned, and invalid once it is closed.
    state = {}
    for key, tensor in tensors.items():
        name = current_name(part, key)
        if name in expected:
            state[name] = tensor.to(dtype, copy=True).reshape(expected[name])
            if tensor.is_floating_point() and not torch.isfinite(state[name]).all():
                raise _not_finite(part, key, tensor, dtype, origin)
    network.load_state_dict(state, assign=True, strict=True)
    if isinstance(network, CLIPTextModel):
        positions = network.embeddings.position_ids.shape[-1]
        network.embeddings.position_ids = torch.arange(positions).expand(1, -1)
    return network.requires_grad_(False).eval()


def _not_finite(
    part: NetworkName, key: str, tensor: torch.Tensor, dtype: torch.dtype, origin: str
) -> CheckpointError:
    name = shown(key, 200)
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        return CheckpointError(
            f"{origin}: {part} key {name} has {bad} of {tensor.numel()} values that are not finite: the "
            "checkpoint is damaged, or its training diverged; get another"
        )
    largest, kind = float(tensor.abs().max()), str(dtype).removeprefix("torch.")
    return CheckpointError(
        f"{origin}: {part} key {name} has a value of {largest:.3g}, too large for {kind}: build it with --precision "
        "fp32"
    )


def check_weights(
    part: NetworkName, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], origin: str
) -> None:
    """Check names and shapes of the weights of ``part`` as :func:`assemble` does, without reading them."""
    expected = {key: tuple(tensor.shape) for key, tensor in skeleton(part, config).state_dict().items()}
    _check(part, expected, shapes, origin)


def _check(
    part: NetworkName,
    expected: Mapping[str, tuple[int, ...]],
    shapes: Mapping[str, tuple[int, ...]],
    origin: str,
) -> None:
    named = {current_name(part, key): shape for key, shape in shapes.items()}
    present = {key: shape for key, shape in named.items() if key in expected or stray_kind(part, key) is None}
    missing = sorted(expected.keys() - present.keys())
    if missing:
        raise CheckpointError(
            f"{origin}: {part} lacks {some_keys(missing)}: it is incomplete or of another model; get it again"
        )
    unexpected = sorted(present.keys() - expected.keys())
    if unexpected:
        raise CheckpointError(
            f"{origin}: {part} has {some_keys(unexpected)}, which its configuration does not: weights and "
            "configuration are of different models"
        )
    for key, shape in present.items():
        # A 1x1 convolution's weight fits the linear layer that replaced it.
        if expected[key] not in (shape, linear_shape(shape)):
            raise CheckpointError(
                f"{origin}: {part} key {key} has shape {list(shape)}, expected {list(expected[key])}: "
                "weights and configuration are of different models"
            )


def stray_kind(part: NetworkName, key: str) -> str | None:
    """Kind of a key, without its network's prefix, that a network does not have and that may be left out; or None."""
    return next(
        (name for network, name, pattern in _STRAY_KEYS if network in (None, part) and pattern.match(key)),
        None,
    )


def strays_note(part: NetworkName, keys: Iterable[str]) -> str | None:
    """Note on the keys of ``part`` that are left out, or None if they are not worth one."""
    counts = Counter(filter(None, (stray_kind(part, key) for key in keys)))
    for name in _USUAL:
        del counts[name]
    if not counts:
        return None
    kinds = ", ".join(f"{name} ({count} {'key' if count == 1 else 'keys'})" for name, count in counts.items())
    return f"{part}: left out {kinds}"


def current_name(part: NetworkName, key: str) -> str:
    """A weight's current name in diffusers or transformers, for the name in any release."""
    if part == "text_encoder":
        return key.removeprefix("text_model.")
    if part == "vae":
        return _OLD_ATTENTION.sub(lambda m: f"{m[1]}{_NEW_ATTENTION[m[2]]}.{m[3]}", key)
    return key


def some_keys(keys: Iterable[str]) -> str:
    """The first key and the number of others, for a message."""
    first, *others = keys
    first = shown(first, 200)
    return f"{first} and {len(others)} more keys" if others else f"the key {first}"
