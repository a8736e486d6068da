"""Parse tensor names of LoRA files, in the layouts of kohya, diffusers and PEFT."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Network = Literal["unet", "text_encoder"]
Role = Literal["down", "up", "mid", "alpha"]


@dataclass(frozen=True, slots=True)
class Module:
    """Layer of a network, as named in a LoRA's key."""

    network: Network
    path: str
    """Path in the network, without ``text_model.``."""
    flat: bool
    """The path has ``_`` instead of dots; only the network's own names can tell the two apart."""

    def __str__(self) -> str:
        return f"{self.network}.{self.path}"


_ROLES: dict[str, Role] = {"down": "down", "A": "down", "up": "up", "B": "up", "mid": "mid", "alpha": "alpha"}
_FORMS = tuple(
    re.compile(form)
    for form in (
        # kohya's sd-scripts, and LyCORIS for convolutions; alpha is a tensor of its own.
        r"(?P<module>.+)\.lora_(?P<role>down|up|mid)\.weight",
        # PEFT; the key may include the adapter's name.
        r"(?P<module>.+)\.lora_(?P<role>A|B)(?:\.[^.]+)?\.weight",
        # diffusers' LoRA layers.
        r"(?P<module>.+)\.lora(?:_linear_layer)?\.(?P<role>down|up)\.weight",
        # diffusers' earlier LoRA attention processors.
        r"(?P<module>.+)\.to_(?P<projection>q|k|v|out)_lora\.(?:(?P<role>down|up)\.weight|(?P<alpha>alpha))",
        r"(?P<module>.+)\.(?P<role>alpha)",
    )
)
_PROJECTIONS: dict[Network, dict[str, str]] = {
    "unet": {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"},
    "text_encoder": {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"},
}
_FLAT_PREFIXES: dict[str, Network] = {"lora_unet_": "unet", "lora_te_": "text_encoder"}
_DOTTED_PREFIXES: dict[str, Network] = {"unet.": "unet", "text_encoder.": "text_encoder"}
_NETWORK_BY_START: dict[str, Network] = {
    "text_model.": "text_encoder",
    "encoder.layers.": "text_encoder",
    "down_blocks.": "unet",
    "mid_block.": "unet",
    "up_blocks.": "unet",
    "conv_in.": "unet",
    "conv_out.": "unet",
    "time_embedding.": "unet",
}
"""Path prefixes that identify the network, for keys that do not name it."""

PEFT = "base_model.model."
"""Prefix of every name in PEFT's files."""

_UNSUPPORTED_KINDS = (
    (re.compile(r"\.(dora_scale|lora_magnitude_vector)\b"), "DoRA"),
    (re.compile(r"\.hada_"), "LoHa"),
    (re.compile(r"\.lokr_"), "LoKr"),
    (re.compile(r"\.(oft_|boft_)"), "OFT"),
    (re.compile(r"\.lora_embedding_[AB]\b"), "a LoRA of embeddings"),
    (re.compile(r"\.lora_B(\.[^.]+)?\.bias$|\.diff_b$"), "changes of biases"),
    (re.compile(r"\.diff$|\.(w|b)_norm$"), "whole weights' differences"),
)
_XL_KEY = re.compile(
    r"^(lora_te[12]_|text_encoder_2\.)|^lora_unet_(input_blocks|middle_block|output_blocks|label_emb)_"
)


def unsupported_kind(keys: Iterable[str]) -> tuple[str, str] | None:
    """Find the first key that does not belong to a plain LoRA; returns it with the name of its kind."""
    for key in keys:
        for pattern, kind in _UNSUPPORTED_KINDS:
            if pattern.search(key):
                return key, kind
    return None


def made_for_xl(keys: Iterable[str]) -> str | None:
    """Find the first key that occurs only in LoRAs for Stable Diffusion XL."""
    return next((key for key in keys if _XL_KEY.search(key)), None)


def parse_key(key: str) -> tuple[Module, Role] | None:
    """Parse a key to its layer and the tensor's role; None if no layout matches."""
    for form in _FORMS:
        match = form.fullmatch(key)
        if match is not None:
            break
    else:
        return None
    groups = match.groupdict()
    role = _ROLES[groups["role"] or groups["alpha"]]
    path = groups["module"]
    for prefix, network in _FLAT_PREFIXES.items():
        if path.startswith(prefix):
            return Module(network, path.removeprefix(prefix).removeprefix("text_model_"), True), role
    located = _network_and_path(path.removeprefix(PEFT))
    if located is None:
        return None
    network, path = located
    path = path.removesuffix(".processor").replace(".processor.", ".")
    if groups.get("projection") is not None:
        path = f"{path}.{_PROJECTIONS[network][groups['projection']]}"
    return Module(network, path, False), role


def _network_and_path(path: str) -> tuple[Network, str] | None:
    """Split a dotted path into its network and the path in that network."""
    for prefix, network in _DOTTED_PREFIXES.items():
        if path.startswith(prefix):
            return network, path.removeprefix(prefix).removeprefix("text_model.")
    for start, network in _NETWORK_BY_START.items():
        # Append a dot, so that a top-level layer such as ``conv_in`` matches its prefix.
        if f"{path}.".startswith(start):
            return network, path.removeprefix("text_model.")
    return None
