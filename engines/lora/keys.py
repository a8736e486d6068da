"""Parse tensor names of adapters: layers and roles, in the layouts of kohya, LyCORIS, diffusers, PEFT and ComfyUI."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Network = Literal["unet", "text_encoder"]
Parameter = Literal["weight", "bias"]
Role = str
"""Tensor of a layer's change: ``down``, ``up``, ``mid``, ``alpha``, ``magnitude``, ``output_norms``, ``diff``,
``factors``, ``on_input``, ``channels``, ``up_bias``, or LyCORIS's name of a factor (``hada_...``, ``lokr_...``)."""


@dataclass(frozen=True, slots=True)
class Module:
    """Layer of a network, as named in an adapter's key."""

    network: Network
    path: str
    """Path in the network, without ``text_model.``."""
    flat: bool
    """The path has ``_`` instead of dots; only the network's own names can tell the two apart."""
    parameter: Parameter = "weight"
    """Parameter of the layer that is changed."""
    optional: bool = False
    """The change is left out if the layer does not have the parameter."""

    def __str__(self) -> str:
        return f"{self.network}.{self.path}" + (".bias" if self.parameter == "bias" else "")


_ROLES = {
    "A": "down",
    "B": "up",
    "dora_scale": "magnitude",
    "lora_magnitude_vector": "output_norms",
    "diff_b": "diff",
    "w_norm": "diff",
    "b_norm": "diff",
    "ia3_l": "channels",
}
_BIASES = ("diff_b", "b_norm")
_FORMS = tuple(
    re.compile(form)
    for form in (
        # kohya's sd-scripts, ComfyUI, and LyCORIS for convolutions; alpha is a tensor of its own.
        r"(?P<module>.+)\.lora_(?P<role>down|up|mid)\.weight",
        # PEFT; the key may include the adapter's name.
        r"(?P<module>.+)\.lora_(?P<role>A|B)(?:\.[^.]+)?\.weight",
        r"(?P<module>.+)\.lora_B(?:\.[^.]+)?\.(?P<bias>bias)",
        r"(?P<module>.+)\.(?P<role>lora_magnitude_vector)(?:\.[^.]+)??(?:\.weight)?",
        # diffusers' LoRA layers.
        r"(?P<module>.+)\.lora(?:_linear_layer)?\.(?P<role>down|up)\.weight",
        # diffusers' earlier LoRA attention processors.
        r"(?P<module>.+)\.to_(?P<projection>q|k|v|out)_lora\.(?:(?P<role>down|up)\.weight|(?P<alpha>alpha))",
        # LyCORIS, and ComfyUI's extracted differences.
        r"(?P<module>.+)\.(?P<role>alpha|dora_scale|diff|diff_b|w_norm|b_norm|on_input)",
        # LyCORIS, and PEFT's equivalents.
        r"(?P<module>.+)\.(?P<role>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|ia3_l)(?:\.[^.]+)?",
    )
)
_FACTORS = re.compile(r"(?P<module>.+)\.(?P<role>weight)")
"""LyCORIS's (IA)^3, of layers that have an ``on_input`` too: otherwise these are whole weights."""
_PROJECTIONS: dict[Network, dict[str, str]] = {
    "unet": {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"},
    "text_encoder": {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"},
}
# Programs that name the text encoders of Stable Diffusion XL write te1 for the only one of other models.
_FLAT_PREFIXES: dict[str, Network] = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
}
_DOTTED_PREFIXES: dict[str, Network] = {
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "diffusion_model.": "unet",
    "model.diffusion_model.": "unet",
}
_COMFY_TEXT = re.compile(r"(?:text_encoders\.)?clip_[a-z]\.transformer\.")
_NETWORK_BY_START: dict[str, Network] = {
    "text_model.": "text_encoder",
    "encoder.layers.": "text_encoder",
    "down_blocks.": "unet",
    "mid_block.": "unet",
    "up_blocks.": "unet",
    "conv_in.": "unet",
    "conv_out.": "unet",
    "time_embedding.": "unet",
    "input_blocks.": "unet",
    "middle_block.": "unet",
    "output_blocks.": "unet",
}
"""Path prefixes that identify the network, for keys that do not name it."""

PEFT = "base_model.model."
"""Prefix of every name in PEFT's files."""
BUNDLED_EMBEDDING = "bundle_emb."
"""Prefix of textual inversions that a LoRA's file holds too."""

_UNSUPPORTED_KINDS = (
    (re.compile(r"\.(oft_|boft_)|\.oft_[RL]\b"), "OFT"),
    (re.compile(r"\.[ab][12]\.weight$"), "GLoRA"),
    (re.compile(r"\.(q_layer|p_layer)\.weight$|\.lambda_layer$"), "T-LoRA"),
    (re.compile(r"\.lora_embedding_[AB]\b"), "a LoRA of embeddings"),
    (re.compile(r"\.(set_weight|reshape_weight)$"), "weights of other shapes or whole weights"),
    (re.compile(r"\.scalar$"), "LyCORIS's scalars, which its own files include in the factors"),
)
_XL_KEY = re.compile(r"^(lora_te2_|text_encoder_2\.|(text_encoders\.)?clip_g\.)|^lora_unet_label_emb_")


def unsupported_kind(keys: Iterable[str]) -> tuple[str, str] | None:
    """Find the first key of an adapter that cannot be merged; returns it with the name of its kind."""
    for key in keys:
        for pattern, kind in _UNSUPPORTED_KINDS:
            if pattern.search(key):
                return key, kind
    return None


def made_for_xl(keys: Iterable[str]) -> str | None:
    """Find the first key that occurs only in LoRAs for Stable Diffusion XL."""
    return next((key for key in keys if _XL_KEY.search(key)), None)


def parse_key(key: str, *, factors: bool = False) -> tuple[Module, Role] | None:
    """Parse a key to its layer and the tensor's role; None if no layout matches.

    Args:
        factors: read a plain ``weight`` as the factors of (IA)^3.
    """
    match = next((match for form in _FORMS if (match := form.fullmatch(key)) is not None), None)
    if match is None and factors:
        match = _FACTORS.fullmatch(key)
    if match is None:
        return None
    groups = match.groupdict()
    name = groups.get("role") or groups.get("alpha") or groups.get("bias")
    assert name is not None
    role = {"bias": "up_bias", "weight": "factors"}.get(name, _ROLES.get(name, name))
    parameter: Parameter = "bias" if name in _BIASES else "weight"
    path = groups["module"]
    for prefix, network in _FLAT_PREFIXES.items():
        if path.startswith(prefix):
            rest = path.removeprefix(prefix).removeprefix("text_model_")
            return Module(network, rest, True, parameter), role
    located = _network_and_path(path.removeprefix(PEFT))
    if located is None:
        return None
    network, path = located
    path = path.removesuffix(".processor").replace(".processor.", ".")
    if groups.get("projection") is not None:
        path = f"{path}.{_PROJECTIONS[network][groups['projection']]}"
    return Module(network, path, False, parameter), role


def _network_and_path(path: str) -> tuple[Network, str] | None:
    """Split a dotted path into its network and the path in that network."""
    for prefix, network in _DOTTED_PREFIXES.items():
        if path.startswith(prefix):
            return network, path.removeprefix(prefix).removeprefix("text_model.")
    comfy = _COMFY_TEXT.match(path)
    if comfy is not None:
        return "text_encoder", path[comfy.end() :].removeprefix("text_model.")
    for start, network in _NETWORK_BY_START.items():
        # Append a dot, so that a top-level layer such as ``conv_in`` matches its prefix.
        if f"{path}.".startswith(start):
            return network, path.removeprefix("text_model.")
    return None
