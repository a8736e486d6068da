"""Identify files and folders that are not Stable Diffusion 2 checkpoints, to name them in the error."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd2rt.engines.errors import CheckpointError
from sd2rt.engines.printable import repr_of, shown
from sd2rt.export.checkpoints.ldm.tensor import PREFIXES
from sd2rt.export.checkpoints.pipeline_configs import PARTS, SD2_TEXT_LAYERS, check_text_encoder, read_json

Shapes = Mapping[str, tuple[int, ...]]

_LCM = "a latent consistency model whose UNet embeds the guidance scale"

# The first pattern that matches the beginning of any key identifies the file.
_FOREIGN = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("a LoRA", r"lora_|.*\.lora[._](A|B|up|down)\b|.*\.lora_(A|B|up|down|linear_layer)\b"),
        (_LCM, r"(model\.diffusion_model\.time_embed|(unet\.)?time_embedding)\.cond_proj\b"),
        ("a ControlNet", r"(control_model|controlnet_\w+|control_\w+)\."),
        ("the SDXL refiner", r"conditioner\.embedders\.0\.model\."),
        ("an SDXL checkpoint", r"conditioner\.embedders\.|edm_mean"),
        ("a Stable Diffusion 3 checkpoint", r"(.*\.)?joint_blocks\.|text_encoders\.clip_g\."),
        ("a Flux checkpoint", r"(.*\.)?(double_blocks|single_transformer_blocks)\."),
        ("a textual inversion embedding", r"(string_to_param|emb_params|<.+>$)"),
    )
)
_SD1_TEXT_ENCODER = "cond_stage_model.transformer."

_NETWORKS = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        (
            "UNet",
            r"(unet\.|down_blocks|mid_block|up_blocks|input_blocks|model\.diffusion_model|model_ema)\b",
        ),
        ("VAE", r"(vae\.|(encoder|decoder)\.(down|up|mid|conv_in)|first_stage_model\b)"),
        (
            "text encoder",
            r"(text_encoder\.|(text_model|encoder\.layers|embeddings|transformer\.resblocks|cond_stage_model)\b)",
        ),
    )
)

CROSS_ATTENTION = re.compile(r"model\.diffusion_model\..*\.attn2\.to_k\.weight$")
_SD1_TEXT_WIDTH = 768
# Names in OpenCLIP or transformers.
_TEXT_WIDTH = re.compile(
    r"cond_stage_model\.(?!.*\bvisual\.).*(ln_final\.weight|positional_embedding|position_embedding\.weight)$"
)
_TEXT_LAYER = re.compile(r"cond_stage_model\.(?!.*\bvisual\.).*\b(?:resblocks|layers)\.(\d+)\.")

_PIPELINES = (
    ("StableDiffusionXL", "an SDXL checkpoint"),
    ("StableDiffusion3", "a Stable Diffusion 3 checkpoint"),
    ("Flux", "a Flux checkpoint"),
    ("StableDiffusionControlNet", "a ControlNet pipeline"),
    ("OnnxStableDiffusion", "an ONNX export"),
    ("StableCascade", "a Stable Cascade checkpoint"),
    ("IF", "a DeepFloyd IF checkpoint"),
)

_SD_PIPELINES = ("StableDiffusion", "StableUnCLIP", "LatentConsistencyModel", "DiffusionPipeline")
"""Beginnings of the classes that can have a Stable Diffusion 2 UNet, whatever their task."""

_WEIGHT_SUFFIXES = (".safetensors", ".bin")
_ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
_REMEDY = "give a Stable Diffusion 2.0 or 2.1 checkpoint (diffusers folder, or single .safetensors or .ckpt)"


def refuse_foreign_file(path: Path) -> None:
    """Raise CheckpointError for a file that, by its name or first bytes, is not a PyTorch checkpoint."""
    with path.open("rb") as stream:
        start = stream.read(9)
    if start.startswith(b"GGUF") or path.suffix == ".gguf":
        raise refusal(str(path), "a GGUF file (quantised weights)")
    if path.suffix == ".onnx":
        raise refusal(str(path), "an ONNX export")
    if path.suffix in _ENGINE_SUFFIXES:
        raise refusal(str(path), "a TensorRT engine")
    # A safetensors file starts with 8 arbitrary bytes, the header's length, and a brace.
    if path.suffix == ".safetensors" and start.startswith((b"PK", b"\x80")) and start[8:] != b"{":
        raise CheckpointError(f"{path} is a pickle, despite its suffix .safetensors: rename it to .ckpt")


def refuse_foreign_keys(origin: str, shapes: Shapes) -> None:
    """Raise CheckpointError, which identifies the file, unless the keys are those of an SD2 single file."""
    for name, pattern in _FOREIGN:
        if any(pattern.match(key) for key in shapes):
            raise refusal(origin, name)
    attends = next((shape[-1] for key, shape in shapes.items() if CROSS_ATTENTION.match(key)), None)
    width = next((shape[-1] for key, shape in shapes.items() if _TEXT_WIDTH.match(key)), None)
    layers = 1 + max((int(match[1]) for key in shapes if (match := _TEXT_LAYER.match(key))), default=-1)
    if width is not None and attends is not None:
        # Some files contain the last layer, which SD2 never evaluates.
        used = SD2_TEXT_LAYERS if layers in (0, SD2_TEXT_LAYERS + 1) else layers
        check_text_encoder(origin, width, layers if width != attends else used, attends)
    if attends == _SD1_TEXT_WIDTH or any(key.startswith(_SD1_TEXT_ENCODER) for key in shapes):
        raise refusal(origin, "a Stable Diffusion 1 checkpoint")
    if not all(any(key.startswith(PREFIXES[part]) for key in shapes) for part in PARTS):
        raise refusal(
            origin,
            _inferred(shapes)
            or _networks_in(shapes)
            or f"unknown (its first key is {shown(min(shapes, default='none'), 200)})",
        )


def _networks_in(shapes: Shapes) -> str | None:
    """Name the networks that a file has and lacks; None if it has none that is known."""
    there = [name for name, pattern in _NETWORKS if any(pattern.match(key) for key in shapes)]
    missing = [name for name, _ in _NETWORKS if name not in there]
    if not there:
        return None
    if len(there) == 1:
        return f"a {there[0]} alone"
    if not missing:
        return "a UNet, a VAE and a text encoder in names of another layout than the original code's"
    return f"a {there[0]} and a {there[1]} without a {missing[0]}"


def refuse_foreign_folder(folder: Path) -> None:
    """Raise CheckpointError, which identifies the folder, unless it has the diffusers pipeline layout."""
    if os.path.exists(folder / "bundle.json"):
        raise CheckpointError(
            f"{folder} is an sd2rt bundle, not a checkpoint: run it with 'sd2rt run', or give the checkpoint "
            "that it was built from"
        )
    files = sorted(file for pattern in ("*", "*/*") for file in folder.glob(pattern) if os.path.isfile(file))
    pipeline = os.path.exists(folder / "model_index.json")
    # Exports and engines may lie beside the weights that they were made of.
    if pipeline and any(file.parent.name == "unet" and file.suffix in _WEIGHT_SUFFIXES for file in files):
        return
    if any(file.suffix == ".onnx" for file in files):
        raise refusal(str(folder), "an ONNX export")
    if any(file.suffix in _ENGINE_SUFFIXES for file in files):
        raise refusal(str(folder), "a folder of TensorRT engines")
    if pipeline:
        return
    if os.path.exists(folder / "adapter_config.json") or any("lora" in file.name.lower() for file in files):
        raise refusal(str(folder), "a LoRA")
    if os.path.exists(folder / "config.json"):
        config = read_json(folder / "config.json")
        architecture = config.get("_class_name") or " ".join(config.get("architectures") or ["model"])
        raise refusal(str(folder), f"a {architecture} alone")
    single = [
        file.name for file in files if file.parent == folder and file.suffix in (".safetensors", ".ckpt")
    ]
    if single:
        raise CheckpointError(
            f"{folder} has no model_index.json, so it is not a diffusers folder: give the file itself, "
            f"such as {folder / single[0]}"
        )
    raise CheckpointError(f"{folder} has no model_index.json, so it is not a diffusers folder: {_REMEDY}")


def refuse_foreign_pipeline(
    origin: str, model_index: Mapping[str, Any], unet: Mapping[str, Any], text_encoder: Mapping[str, Any]
) -> None:
    """Raise CheckpointError for a pipeline class or a UNet of another known model.

    Classes of other tasks, such as image-to-image, are no obstacle: the UNet's inputs decide what it is.
    """
    pipeline = str(model_index.get("_class_name"))
    if unet.get("time_cond_proj_dim") is not None:
        raise refusal(origin, f"{_LCM} (time_cond_proj_dim)")
    for beginning, name in _PIPELINES:
        if pipeline.startswith(beginning):
            raise refusal(origin, f"{name} ({pipeline})")
    if not pipeline.startswith(_SD_PIPELINES):
        raise refusal(origin, f"a pipeline of another kind ({shown(repr_of(pipeline), 100)})")
    attends = unet.get("cross_attention_dim")
    # check_text_encoder refuses a text encoder of another width, and names both.
    if attends == _SD1_TEXT_WIDTH == text_encoder.get("hidden_size", attends):
        raise refusal(origin, f"a Stable Diffusion 1 checkpoint (cross_attention_dim {_SD1_TEXT_WIDTH})")


def refusal(origin: str, description: str) -> CheckpointError:
    return CheckpointError(f"{origin} is {description}, not a Stable Diffusion 2 checkpoint: {_REMEDY}")


@dataclass(frozen=True, slots=True)
class _Shape:
    """Stand-in for a tensor: diffusers' recognition reads only the shape."""

    shape: tuple[int, ...]


def _inferred(shapes: Shapes) -> str | None:
    """Description of the model that diffusers infers from the keys; None if it only assumes its default."""
    from diffusers.loaders.single_file_utils import (
        DIFFUSERS_DEFAULT_PIPELINE_PATHS,
        infer_diffusers_model_type,
    )

    model_type = infer_diffusers_model_type({key: _Shape(shape) for key, shape in shapes.items()})
    published = DIFFUSERS_DEFAULT_PIPELINE_PATHS.get(model_type, {}).get("pretrained_model_name_or_path")
    return None if model_type in ("v1", "v2") or published is None else f"of the kind of {published}"
