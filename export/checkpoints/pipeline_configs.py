"""Read and write the configuration files of a diffusers pipeline folder; those of published ones are packaged."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sd2rt.engines.bundle.model_kinds import KINDS, KindSpec
from sd2rt.engines.errors import CheckpointError
from sd2rt.engines.json_text import parse_json
from sd2rt.engines.printable import shown
from sd2rt.engines.regular_file import read_regular
from sd2rt.engines.text_file import decode_text
from sd2rt.export.checkpoints.variants import VARIANTS

NetworkName = Literal["text_encoder", "unet", "vae", "depth_estimator"]
PARTS: tuple[NetworkName, ...] = ("text_encoder", "unet", "vae")
"""Networks of every checkpoint; ``PipelineConfigs.parts`` lists all networks of one."""

ComponentName = Literal[NetworkName, "scheduler", "low_res_scheduler"]

Config = dict[str, Any]

MAX_JSON_BYTES = 4 << 20
"""Configuration files have a few kilobytes; indices of sharded weights some hundred."""

CONFIG_FILES: dict[ComponentName, str] = {
    "text_encoder": "text_encoder/config.json",
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "scheduler": "scheduler/scheduler_config.json",
    "depth_estimator": "depth_estimator/config.json",
    "low_res_scheduler": "low_res_scheduler/scheduler_config.json",
}
MODEL_INDEX = "model_index.json"
_SCHEDULERS: frozenset[ComponentName] = frozenset({"scheduler", "low_res_scheduler"})
_CLASSES: dict[str, tuple[str, ...]] = {
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "depth_estimator": ("DPTForDepthEstimation",),
}
"""Classes of components that model_index.json may name."""
FEATURE_EXTRACTOR_FILE = "feature_extractor/preprocessor_config.json"

PACKAGED_CONFIGS = Path(__file__).parent.parent / "configs"

# Preprocessing for the depth estimator if a folder has no file for it: that of the only release with one.
_PUBLISHED_FEATURE_EXTRACTOR = PACKAGED_CONFIGS / "stable-diffusion-2-depth" / FEATURE_EXTRACTOR_FILE

# diffusers' upscale pipeline overrides the VAE's scaling factor, and has a default for max_noise_level.
_UPSCALER_SCALING_FACTOR = 0.08333
_UPSCALER_MAX_NOISE_LEVEL = 350

# Text encoders of Stable Diffusion models, by width.
_TEXT_ENCODERS = {
    768: "CLIP-L, Stable Diffusion 1's",
    1024: "OpenCLIP ViT-H, Stable Diffusion 2's",
    1280: "OpenCLIP ViT-bigG, SDXL's",
}
_SD2_TEXT_WIDTH = 1024
_MAX_BLOCKS = 16
SD2_TEXT_LAYERS = 23


@dataclass(frozen=True, slots=True)
class PipelineConfigs:
    """Configurations of a pipeline's networks and schedulers, from its JSON files."""

    text_encoder: Config
    unet: Config
    vae: Config
    scheduler: Config
    depth_estimator: Config | None = None
    feature_extractor: Config | None = None
    """Preprocessing for the depth estimator; present with ``depth_estimator``."""
    low_res_scheduler: Config | None = None
    """Noise schedule for an upscaler's input image."""
    max_noise_level: int | None = None
    """Highest noise level of that image; present with ``low_res_scheduler``."""

    @property
    def parts(self) -> tuple[NetworkName, ...]:
        """The networks of this pipeline."""
        return PARTS if self.depth_estimator is None else (*PARTS, "depth_estimator")

    def part(self, part: NetworkName) -> Config:
        """A network's configuration.

        Raises:
            CheckpointError: this pipeline has no such network.
        """
        configs = {
            "text_encoder": self.text_encoder,
            "unet": self.unet,
            "vae": self.vae,
            "depth_estimator": self.depth_estimator,
        }
        config = configs[part]
        if config is None:
            raise CheckpointError(
                f"this checkpoint has no {part}: use a checkpoint of a variant that has one"
            )
        return config

    @property
    def vae_factor(self) -> int:
        """Pixels per latent, along one side."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))

    @property
    def native_size(self) -> int:
        """Side of the UNet's training images, in pixels.

        Files from before diffusers 0.9 may have sample_size 32 for latents of 64; diffusers' pipelines correct that.
        """
        size = int(self.unet["sample_size"])
        if size < 64 and re.match(r"0\.[0-8](\.|$)", str(self.unet.get("_diffusers_version"))):
            size = 64
        return size * self.vae_factor

    @classmethod
    def read(cls, folder: Path) -> PipelineConfigs:
        """Read those files of a diffusers folder that a pipeline with its UNet needs.

        Raises:
            CheckpointError: a file is missing or not a JSON object, a value is wrong, or two parts are of
                different models.
        """
        unet = read_json(folder / CONFIG_FILES["unet"])
        files = {name: read_json(folder / CONFIG_FILES[name]) for name in components(unet) if name != "unet"}
        index = _read_index(folder)
        for name in files.keys() & _SCHEDULERS:
            files[name] = _with_class_of(index.get(name), files[name], folder)
        feature_extractor, max_noise_level = None, None
        if "depth_estimator" in files:
            path = folder / FEATURE_EXTRACTOR_FILE
            feature_extractor = read_json(path if os.path.exists(path) else _PUBLISHED_FEATURE_EXTRACTOR)
        if "low_res_scheduler" in files:
            files["vae"]["scaling_factor"] = _UPSCALER_SCALING_FACTOR
            max_noise_level = _max_noise_level(folder, unet)
        configs = cls(
            **files, unet=unet, feature_extractor=feature_extractor, max_noise_level=max_noise_level
        )
        configs._check(folder)
        return configs

    def _check(self, folder: Path) -> None:
        """Refuse wrong values, and parts that do not belong together."""
        sample_size = self.unet.get("sample_size")
        if not isinstance(sample_size, int) or isinstance(sample_size, bool) or sample_size < 1:
            raise CheckpointError(
                f"{folder / CONFIG_FILES['unet']}: sample_size is {sample_size!r}, expected the latents' "
                "side in pixels, such as 64: set it"
            )
        if not isinstance(self.vae.get("block_out_channels"), list):
            raise CheckpointError(
                f"{folder / CONFIG_FILES['vae']}: no list block_out_channels: take the file from the "
                "published checkpoint"
            )
        if len(self.vae["block_out_channels"]) > _MAX_BLOCKS:
            raise CheckpointError(
                f"{folder / CONFIG_FILES['vae']}: block_out_channels has {len(self.vae['block_out_channels'])} "
                f"numbers, no VAE has more than {_MAX_BLOCKS}: take the file from the published checkpoint"
            )
        check_text_encoder(
            str(folder),
            self.text_encoder.get("hidden_size"),
            self.text_encoder.get("num_hidden_layers"),
            self.unet.get("cross_attention_dim"),
        )
        channels, expected = self.unet.get("out_channels"), self.vae.get("latent_channels")
        if channels != expected:
            raise CheckpointError(
                f"{folder}: unet has out_channels {channels!r}, but vae has latent_channels {expected!r}: the two "
                "are of different models; copy the folder again"
            )
        kind = kind_of(self.unet)
        if kind is not None and self.vae_factor != kind.vae_factor:
            raise CheckpointError(
                f"{folder}: the UNet has {self.unet.get('in_channels')} input channels and needs a VAE of "
                f"{kind.vae_factor} pixels per latent, but vae has {self.vae_factor}: the two are of "
                "different models; copy the folder again"
            )

    @classmethod
    def packaged(cls, folder_name: str) -> PipelineConfigs:
        """Published configurations that are packaged with sd2rt, such as ``stable-diffusion-2-1``."""
        return cls.read(PACKAGED_CONFIGS / folder_name)

    def write(self, folder: Path) -> None:
        """Write the files and model_index.json in diffusers' layout; create the folders."""
        files = {MODEL_INDEX: self._model_index()}
        files |= {CONFIG_FILES[part]: self.part(part) for part in self.parts}
        files[CONFIG_FILES["scheduler"]] = self.scheduler
        if self.feature_extractor is not None:
            files[FEATURE_EXTRACTOR_FILE] = self.feature_extractor
        if self.low_res_scheduler is not None:
            files[CONFIG_FILES["low_res_scheduler"]] = self.low_res_scheduler
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _model_index(self) -> Config:
        index: Config = {
            "_class_name": _pipeline_class(self.unet),
            "_diffusers_version": "0.10.0.dev0",
            "scheduler": ["diffusers", self.scheduler["_class_name"]],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        if self.depth_estimator is not None:
            index["depth_estimator"] = ["transformers", "DPTForDepthEstimation"]
            index["feature_extractor"] = ["transformers", "DPTImageProcessor"]
        elif self.low_res_scheduler is not None:
            index["low_res_scheduler"] = ["diffusers", self.low_res_scheduler["_class_name"]]
            index["max_noise_level"] = self.max_noise_level
        else:
            index["feature_extractor"] = index["safety_checker"] = [None, None]
            index["requires_safety_checker"] = False
        return index


def kind_of(unet: Config) -> KindSpec | None:
    """A kind of model with this UNet's inputs, or None. Kinds with the same inputs have the same parts."""
    rows = (row for row in VARIANTS if row.has_unet(unet.get("in_channels", 4), class_embedding(unet)))
    return next((KINDS[row.kind] for row in rows if row.kind is not None), None)


def components(unet: Config) -> tuple[ComponentName, ...]:
    """Components of a pipeline with this UNet, except the tokenizer; each is a folder."""
    kind = kind_of(unet)
    names: list[ComponentName] = [*PARTS, "scheduler"]
    if kind is not None and "depth_estimator" in kind.parts:
        names.append("depth_estimator")
    if kind is not None and kind.class_label:
        names.append("low_res_scheduler")
    return tuple(names)


def class_embedding(unet: Config) -> str | None:
    """Kind of a UNet's class embedding, as in the table of variants, or None."""
    if unet.get("class_embed_type") is not None:
        return str(unet["class_embed_type"])
    return "table" if unet.get("num_class_embeds") is not None else None


def check_text_encoder(origin: str, width: object, layers: object, attends: object) -> None:
    """Refuse a text encoder that the UNet was not trained with.

    Args:
        width: width of its hidden states.
        layers: number of its layers that are evaluated.
        attends: width of the UNet's cross-attention.

    Raises:
        CheckpointError: the widths differ, or the number of layers is not SD2's.
    """
    if width != attends:
        encoder = f" ({_TEXT_ENCODERS[width]})" if isinstance(width, int) and width in _TEXT_ENCODERS else ""
        raise CheckpointError(
            f"{origin}: the text encoder is {width} wide with {layers} layers{encoder}, but the UNet attends to "
            f"{attends}: they are of different models; take both from one checkpoint"
        )
    if width == _SD2_TEXT_WIDTH and layers != SD2_TEXT_LAYERS:
        raise CheckpointError(
            f"{origin}: the text encoder is {width} wide with {layers} layers, but the UNet, which attends to "
            f"{attends}, was trained on the output of layer {SD2_TEXT_LAYERS} of OpenCLIP ViT-H's "
            f"{SD2_TEXT_LAYERS + 1}: take the text encoder of a published checkpoint, which has "
            f"{SD2_TEXT_LAYERS} layers"
        )


def _pipeline_class(unet: Config) -> str:
    rows = (row for row in VARIANTS if row.has_unet(unet.get("in_channels", 4), class_embedding(unet)))
    return next(row.pipeline_class for row in rows)


def _max_noise_level(folder: Path, unet: Config) -> int:
    path = folder / MODEL_INDEX
    level = _read_index(folder).get("max_noise_level", _UPSCALER_MAX_NOISE_LEVEL)
    embedded = unet["num_class_embeds"]
    if not isinstance(embedded, int):
        raise CheckpointError(
            f"{folder / CONFIG_FILES['unet']}: num_class_embeds is {embedded!r}, expected a number of noise "
            "levels, such as 1000: set it"
        )
    if not isinstance(level, int) or isinstance(level, bool) or not 0 <= level < embedded:
        raise CheckpointError(
            f"{path}: max_noise_level is {level!r}, but the UNet embeds the levels 0 to {embedded - 1}: set it "
            f"to one of them, such as {min(_UPSCALER_MAX_NOISE_LEVEL, embedded - 1)}"
        )
    return level


def check_classes(origin: str, index: Config, unet: Config) -> None:
    """Check that model_index.json, whose classes diffusers loads, names those that sd2rt implements.

    Schedulers are left to :func:`~sd2rt.export.checkpoints.scheduler_config.read_scheduler`.

    Raises:
        CheckpointError: it names another.
    """
    for name in (*components(unet), "tokenizer"):
        expected = _CLASSES.get(name)
        if expected is None or name not in index:
            continue
        named = index[name]
        if not isinstance(named, list) or len(named) != 2 or named[1] not in expected:
            raise CheckpointError(
                f"{origin}: model_index.json has {name} = {shown(json.dumps(named), 80)}, expected "
                f"{expected[0]}: it is of another model, or was edited"
            )


def _read_index(folder: Path) -> Config:
    path = folder / MODEL_INDEX
    return read_json(path) if os.path.exists(path) else {}


def _with_class_of(named: object, config: Config, folder: Path) -> Config:
    """Return a scheduler's configuration for the class that model_index.json names, which diffusers creates.

    The file's own class counts only if the index has none. Keys that the file lists as defaults of the class that
    wrote it are dropped, as in diffusers.
    """
    if named is None:
        return config
    if not isinstance(named, list) or len(named) != 2 or not all(isinstance(each, str) for each in named):
        raise CheckpointError(
            f"{folder / MODEL_INDEX} has the scheduler {shown(json.dumps(named), 80)}, expected a library and a "
            "class: copy the file again"
        )
    defaults = config.get("_use_default_values")
    dropped = defaults if isinstance(defaults, list) else []
    return {key: value for key, value in config.items() if key not in dropped} | {"_class_name": named[1]}


def read_json(path: Path) -> Config:
    """Read a JSON object from a file.

    Raises:
        CheckpointError: the file is missing, unreadable or not a JSON object.
    """
    try:
        content = parse_json(decode_text(read_regular(path, MAX_JSON_BYTES)))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing, but every diffusers folder has it: copy the folder again"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is not valid JSON ({reason}): copy the file again") from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a JSON {type(content).__name__}, expected an object: copy the file again"
        )
    return content
