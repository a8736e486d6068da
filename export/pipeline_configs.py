"""The configuration files of one diffusers pipeline folder, read, written and packaged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sd2rt.engines.errors import CheckpointError

PartName = Literal["text_encoder", "unet", "vae"]
PARTS: tuple[PartName, ...] = ("text_encoder", "unet", "vae")

Config = dict[str, Any]

PACKAGED_CONFIGS = Path(__file__).parent / "configs"
PACKAGED_TOKENIZER = Path(__file__).parent / "tokenizer" / "tokenizer.json"


@dataclass(frozen=True, slots=True)
class PipelineConfigs:
    """What a pipeline's JSON files say of its networks and its scheduler; the weights are elsewhere."""

    text_encoder: Config
    unet: Config
    vae: Config
    scheduler: Config

    def part(self, part: PartName) -> Config:
        return {"text_encoder": self.text_encoder, "unet": self.unet, "vae": self.vae}[part]

    @property
    def vae_factor(self) -> int:
        """Pixels per latent, along one side."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))

    @property
    def native_size(self) -> int:
        """Side in pixels of the images that the UNet was trained on."""
        return int(self.unet["sample_size"]) * self.vae_factor

    @classmethod
    def read(cls, folder: Path) -> PipelineConfigs:
        """Read the four files of a diffusers folder.

        Raises CheckpointError naming the file that is missing or is not a JSON object, or the value that is.
        """
        configs = cls(
            text_encoder=read_json(folder / "text_encoder" / "config.json"),
            unet=read_json(folder / "unet" / "config.json"),
            vae=read_json(folder / "vae" / "config.json"),
            scheduler=read_json(folder / "scheduler" / "scheduler_config.json"),
        )
        sample_size = configs.unet.get("sample_size")
        if not isinstance(sample_size, int) or isinstance(sample_size, bool) or sample_size < 1:
            raise CheckpointError(
                f"{folder / 'unet' / 'config.json'}: sample_size is {sample_size!r}, expected the latents' "
                "side in pixels, such as 64: set it"
            )
        if not isinstance(configs.vae.get("block_out_channels"), list):
            raise CheckpointError(
                f"{folder / 'vae' / 'config.json'}: no list block_out_channels: take the file from the "
                "published checkpoint"
            )
        agree: tuple[tuple[PartName, str, PartName, str], ...] = (
            ("unet", "cross_attention_dim", "text_encoder", "hidden_size"),
            ("unet", "out_channels", "vae", "latent_channels"),
        )
        for part, key, other, wanted in agree:
            has, expected = configs.part(part).get(key), configs.part(other).get(wanted)
            if has != expected:
                raise CheckpointError(
                    f"{folder}: {part} has {key} {has!r}, but {other} has {wanted} {expected!r}: the two are "
                    "of different models; copy the folder again"
                )
        return configs

    @classmethod
    def packaged(cls, folder_name: str) -> PipelineConfigs:
        """The published files that sd2rt carries, such as ``stable-diffusion-2-1``."""
        return cls.read(PACKAGED_CONFIGS / folder_name)

    def write(self, folder: Path) -> None:
        """Write the four files and model_index.json as diffusers lays them out; folders are made."""
        model_index = {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.10.0.dev0",
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", self.scheduler["_class_name"]],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        files = {
            "model_index.json": model_index,
            "text_encoder/config.json": self.text_encoder,
            "unet/config.json": self.unet,
            "vae/config.json": self.vae,
            "scheduler/scheduler_config.json": self.scheduler,
        }
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> Config:
    """A JSON object from a file; CheckpointError when it is missing, unreadable or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing: a diffusers folder has it; copy the folder again"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is not valid JSON ({reason}): copy the file again") from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a JSON {type(content).__name__}, expected an object: copy it again"
        )
    return content
