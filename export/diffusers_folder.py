"""Checkpoints in the diffusers layout: one folder per part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from sd2rt.engines.errors import CheckpointError
from sd2rt.export.parts import Found
from sd2rt.export.pipeline_configs import PARTS, Config, PartName, PipelineConfigs, read_json
from sd2rt.export.variants import RAIL
from sd2rt.export.weight_file import WeightFile, open_safetensors, sha256

WEIGHT_STEMS: dict[PartName, str] = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}


class FolderParts:
    """The parts of a diffusers folder, each read when it is asked for."""

    def __init__(self, folder: Path, configs: PipelineConfigs, files: dict[PartName, list[WeightFile]]) -> None:
        self._folder = folder
        self._configs = configs
        self._files = files

    def config(self, part: PartName) -> Config:
        return self._configs.part(part)

    def tensors(self, part: PartName) -> dict[str, torch.Tensor]:
        return {key: tensor for file in self._files[part] for key, tensor in file.tensors(file.shapes).items()}

    def tokenizer_json(self) -> str:
        return read_tokenizer(self._folder / "tokenizer")


def open_folder(
    folder: Path,
    *,
    variant: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Found:
    configs = PipelineConfigs.read(folder)
    files = {part: [open_safetensors(path) for path in weight_paths(folder, part)] for part in PARTS}
    source = {
        file.path.relative_to(folder).as_posix(): sha256(file.path, progress) for part in PARTS for file in files[part]
    }
    return Found(folder.name, None, configs, source, RAIL, FolderParts(folder, configs, files))


def weight_paths(folder: Path, part: PartName) -> list[Path]:
    stem = WEIGHT_STEMS[part]
    for infix in ("", ".fp16"):
        whole = folder / part / f"{stem}{infix}.safetensors"
        if whole.exists():
            return [whole]
        # diffusers writes model.safetensors.index.fp16.json, transformers model.fp16.safetensors.index.json
        for index in (f"{stem}.safetensors.index{infix}.json", f"{stem}{infix}.safetensors.index.json"):
            if (folder / part / index).exists():
                return _shards(folder / part / index)
    raise CheckpointError("missing")


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    return [index.parent / name for name in sorted(set(weight_map.values()))]


def read_tokenizer(folder: Path) -> str:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(77)
    backend.enable_padding(length=77, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    return str(backend.to_str())
