"""The names of a LoRA's tensors, in the layouts that trainers write them in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Network = Literal["unet", "text_encoder"]
Role = Literal["down", "up", "mid", "alpha"]


@dataclass(frozen=True, slots=True)
class Module:
    """A layer of a network, as a key names it."""

    network: Network
    path: str
    """Its path in the network, without ``text_model.``."""
    flat: bool
    """The path has ``_`` in the place of its dots, which only the network's own names can tell apart."""

    def __str__(self) -> str:
        return f"{self.network}.{self.path}"


_ROLES: dict[str, Role] = {"down": "down", "A": "down", "up": "up", "B": "up", "mid": "mid", "alpha": "alpha"}
_FORMS = tuple(
    re.compile(form)
    for form in (
        # kohya's sd-scripts, and LyCORIS for convolutions: a factor each, alpha beside them.
        r"(?P<module>.+)\.lora_(?P<role>down|up|mid)\.weight",
        # PEFT; its adapter has a name while it is in memory.
        r"(?P<module>.+)\.lora_(?P<role>A|B)(?:\.[^.]+)?\.weight",
        # diffusers' layers.
        r"(?P<module>.+)\.lora(?:_linear_layer)?\.(?P<role>down|up)\.weight",
        # diffusers' attention processors, of before it had layers.
        r"(?P<module>.+)\.to_(?P<projection>q|k|v|out)_lora\.(?:(?P<role>down|up)\.weight|(?P<alpha>alpha))",
        r"(?P<module>.+)\.(?P<role>alpha)",
    )
)
_PROJECTIONS: dict[Network, dict[str, str]] = {
    "unet": {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"},
    "text_encoder": {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"},
}
_FLAT: dict[str, Network] = {"lora_unet_": "unet", "lora_te_": "text_encoder"}
_DOTTED: dict[str, Network] = {"unet.": "unet", "text_encoder.": "text_encoder"}
_STARTS: dict[str, Network] = {
    "text_model.": "text_encoder",
    "encoder.layers.": "text_encoder",
    "down_blocks.": "unet",
    "mid_block.": "unet",
    "up_blocks.": "unet",
    "conv_in.": "unet",
    "conv_out.": "unet",
    "time_embedding.": "unet",
}
"""How the paths of a network begin where nothing says which one it is."""

PEFT = "base_model.model."
"""What PEFT's own files begin each name with."""

_OTHERS = (
    (re.compile(r"\.(dora_scale|lora_magnitude_vector)\b"), "DoRA"),
    (re.compile(r"\.hada_"), "LoHa"),
    (re.compile(r"\.lokr_"), "LoKr"),
    (re.compile(r"\.(oft_|boft_)"), "OFT"),
    (re.compile(r"\.lora_embedding_[AB]\b"), "a LoRA of embeddings"),
    (re.compile(r"\.lora_B(\.[^.]+)?\.bias$|\.diff_b$"), "changes of biases"),
    (re.compile(r"\.diff$|\.(w|b)_norm$"), "whole weights' differences"),
)
_XL = re.compile(
    r"^(lora_te[12]_|text_encoder_2\.)|^lora_unet_(input_blocks|middle_block|output_blocks|label_emb)_"
)


def other_kind(keys: Iterable[str]) -> tuple[str, str] | None:
    """The first key that is of something else than a plain LoRA, and what that is called."""
    for key in keys:
        for pattern, kind in _OTHERS:
            if pattern.search(key):
                return key, kind
    return None


def made_for_xl(keys: Iterable[str]) -> str | None:
    """The first key that only a LoRA for Stable Diffusion XL has."""
    return next((key for key in keys if _XL.search(key)), None)


def parse_key(key: str) -> tuple[Module, Role] | None:
    """What a key is of, and which of its tensors; None where it is of no known form."""
    for form in _FORMS:
        found = form.fullmatch(key)
        if found is not None:
            break
    else:
        return None
    groups = found.groupdict()
    role = _ROLES[groups["role"] or groups["alpha"]]
    path = groups["module"]
    for prefix, network in _FLAT.items():
        if path.startswith(prefix):
            return Module(network, path.removeprefix(prefix).removeprefix("text_model_"), True), role
    owner = _owner(path.removeprefix(PEFT))
    if owner is None:
        return None
    network, path = owner
    path = path.removesuffix(".processor").replace(".processor.", ".")
    if groups.get("projection") is not None:
        path = f"{path}.{_PROJECTIONS[network][groups['projection']]}"
    return Module(network, path, False), role


def _owner(path: str) -> tuple[Network, str] | None:
    """The network that a dotted path is of, and its path there."""
    for prefix, network in _DOTTED.items():
        if path.startswith(prefix):
            return network, path.removeprefix(prefix).removeprefix("text_model.")
    for start, network in _STARTS.items():
        # With a dot after it: a layer may be at the top of its network.
        if f"{path}.".startswith(start):
            return network, path.removeprefix("text_model.")
    return None
