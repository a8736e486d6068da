"""Write a checkpoint in the diffusers layout, loadable by diffusers itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from sd2rt.engines.demo.files import TOKENIZER
from sd2rt.export.checkpoints.demo import open_demo
from sd2rt.export.checkpoints.pipeline_configs import PACKAGED_CONFIGS, NetworkName, PipelineConfigs
from sd2rt.export.testing.safetensors_writer import Entry, write_safetensors

WEIGHT_FILES: dict[NetworkName, str] = {
    "text_encoder": "text_encoder/model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "depth_estimator": "depth_estimator/model.safetensors",
}
"""Path of each part's weights in a diffusers folder."""


def write_folder(
    path: Path,
    configs: PipelineConfigs,
    entries: Callable[[NetworkName], Iterable[Entry]],
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the tensors of each part in ``dtype``, the configuration files and the tokenizer; return ``path``."""
    for part in configs.parts:
        target = path / WEIGHT_FILES[part]
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as stream:
            write_safetensors(stream, entries(part), dtype)
    configs.write(path)
    _write_tokenizer(path / "tokenizer")
    return path


def write_demo(path: Path, name: str, dtype: torch.dtype = torch.float32) -> Path:
    """Write a demo checkpoint, by its name in ``DEMO_NAMES``, as a diffusers folder; return ``path``.

    Raises:
        CheckpointError: the package lacks its weights.
    """
    demo = open_demo(name, None)

    def entries(part: NetworkName) -> list[Entry]:
        tensors = demo.parts.tensors(part)
        return [Entry(key, tuple(tensor.shape), tensor.contiguous) for key, tensor in tensors.items()]

    return write_folder(path, demo.configs, entries, dtype)


def _write_tokenizer(folder: Path) -> None:
    """Write the packaged tokenizer as in the published folders: vocabulary, merges and settings."""
    folder.mkdir(parents=True, exist_ok=True)
    model = json.loads(TOKENIZER.read_text(encoding="utf-8"))["model"]
    merges = "".join(" ".join(pair) + "\n" for pair in model["merges"])
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        content = (PACKAGED_CONFIGS / "stable-diffusion-2-1-base" / "tokenizer" / name).read_bytes()
        (folder / name).write_bytes(content)
