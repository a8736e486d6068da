"""Checkpoints in the diffusers layout: one folder per part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from sd2rt.engines.errors import CheckpointError
from sd2rt.export.identify import (
    Evidence,
    by_architecture,
    by_hash,
    by_prediction,
    narrow,
    not_supported,
    stated,
)
from sd2rt.export.networks import check_weights
from sd2rt.export.parts import Found
from sd2rt.export.pipeline_configs import PARTS, Config, PartName, PipelineConfigs, read_json
from sd2rt.export.recognise import refuse_foreign_folder, refuse_foreign_pipeline
from sd2rt.export.scheduler_config import read_scheduler
from sd2rt.export.tokenizer_json import read_tokenizer_json
from sd2rt.export.variants import RAIL, VARIANTS, Variant
from sd2rt.export.weight_file import WeightFile, open_safetensors, sha256

WEIGHT_STEMS: dict[PartName, str] = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
_FOLDERS = (*PARTS, "scheduler", "tokenizer")


class FolderParts:
    """The parts of a diffusers folder, each read when it is asked for."""

    def __init__(
        self, folder: Path, configs: PipelineConfigs, files: Mapping[PartName, list[WeightFile]]
    ) -> None:
        self._folder = folder
        self._configs = configs
        self._files = files

    def config(self, part: PartName) -> Config:
        return self._configs.part(part)

    def tensors(self, part: PartName) -> dict[str, torch.Tensor]:
        return {
            key: tensor for file in self._files[part] for key, tensor in file.tensors(file.shapes).items()
        }

    def tokenizer_json(self) -> str:
        return read_tokenizer_json(self._folder / "tokenizer", self._configs.text_encoder)


def open_folder(
    folder: Path,
    *,
    name: str | None = None,
    variant: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Found:
    """Recognise a diffusers folder and check the names and shapes of all its weights.

    Args:
        folder: the folder with model_index.json.
        name: the Hub id that it was downloaded as, if it was.
        variant: what ``--variant`` says; it must agree with the folder.
        progress: told about each file before it is hashed.

    Raises CheckpointError naming the file or value that is missing, damaged or another model's.
    """
    refuse_foreign_folder(folder)
    model_index = read_json(folder / "model_index.json")
    origin = name if name is not None else str(folder)
    # Another model's folder has other parts: it is named before its parts are missed.
    unet = read_json(folder / "unet" / "config.json") if (folder / "unet" / "config.json").exists() else {}
    refuse_foreign_pipeline(origin, model_index, unet)
    _refuse_known_by_name(origin, name or folder.resolve().name, str(model_index.get("_name_or_path")))
    for part in _FOLDERS:
        if not (folder / part).is_dir():
            raise CheckpointError(
                f"{origin} lacks its folder {part}/: a checkpoint has {', '.join(_FOLDERS)}"
            )
    configs = PipelineConfigs.read(folder)
    read_scheduler(configs.scheduler, origin)

    evidence = [
        *_by_pipeline(str(model_index.get("_class_name"))),
        *by_architecture(int(configs.unet.get("in_channels", 4)), _class_embedding(configs.unet)),
        *by_prediction(configs.scheduler.get("prediction_type", "epsilon"), "scheduler_config.json"),
        *_by_hub_id(name),
    ]
    asked = stated(variant)
    narrow(origin, [*evidence, *asked])
    files = {part: [open_safetensors(path) for path in weight_paths(folder, part)] for part in PARTS}
    for part in PARTS:
        shapes = {key: shape for file in files[part] for key, shape in file.shapes.items()}
        check_weights(part, configs.part(part), shapes, origin)

    source = {
        file.path.relative_to(folder).as_posix(): sha256(file.path, progress)
        for part in PARTS
        for file in files[part]
    }
    known = [found for digest in source.values() for found in by_hash(digest)]
    rows = narrow(origin, [*evidence, *known, *asked])
    releases = {row.release for row in rows}
    return Found(
        name=name if name is not None else folder.resolve().name,
        release=releases.pop() if len(releases) == 1 else None,
        configs=configs,
        source=source,
        license=RAIL,
        parts=FolderParts(folder, configs, files),
    )


def weight_paths(folder: Path, part: PartName) -> list[Path]:
    """The part's safetensors files: whole or in shards, in full precision if there are both.

    Raises CheckpointError naming what is there instead.
    """
    stem = WEIGHT_STEMS[part]
    for infix in ("", ".fp16"):
        whole = folder / part / f"{stem}{infix}.safetensors"
        if whole.exists():
            return [whole]
        # diffusers and transformers put the variant's name in different places.
        for index in (f"{stem}.safetensors.index{infix}.json", f"{stem}{infix}.safetensors.index.json"):
            if (folder / part / index).exists():
                return _shards(folder / part / index)
    pickled = [file.name for file in sorted((folder / part).glob("*.bin"))]
    if pickled:
        raise CheckpointError(
            f"{folder / part} has only pickled weights ({pickled[0]}), expected {stem}.safetensors: load "
            "the folder with diffusers and save it again, which writes safetensors"
        )
    raise CheckpointError(
        f"{folder / part / stem}.safetensors is missing (nor is there an fp16 or sharded one): copy it again"
    )


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of file names: copy the file again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(
                f"{index} names the shard {name!r}, which is not beside it: do not use this folder"
            )
    return [index.parent / name for name in names]


def _by_pipeline(pipeline: str) -> list[Evidence]:
    rows = tuple(row for row in VARIANTS if pipeline in row.pipeline_classes)
    return [Evidence(f"its pipeline class {pipeline}", rows)]


def _by_hub_id(name: str | None) -> list[Evidence]:
    rows = tuple(row for row in VARIANTS if name in _hub_names(row))
    return [Evidence(f"its Hub id {name}", rows)] if rows else []


def _hub_names(row: Variant) -> tuple[str, ...]:
    return (row.hub_id,) if row.mirror is None else (row.hub_id, row.mirror)


def _refuse_known_by_name(origin: str, *names: str) -> None:
    """Refuse what only its name tells from a supported checkpoint, such as SD-Turbo."""
    tails = {name.rsplit("/", 1)[-1] for name in names}
    rows = [row for row in VARIANTS if not row.supported and row.hub_id.rsplit("/", 1)[-1] in tails]
    if rows:
        raise CheckpointError(f"{origin} is {not_supported(rows, 'by its name')}")


def _class_embedding(unet: Config) -> str | None:
    if unet.get("class_embed_type") is not None:
        return str(unet["class_embed_type"])
    return "table" if unet.get("num_class_embeds") is not None else None
