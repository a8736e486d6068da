"""Open checkpoints in the diffusers layout: one folder for each part."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from sd2rt.engines.errors import CheckpointError
from sd2rt.engines.printable import shown
from sd2rt.export.checkpoints.condition_configs import check_conditions
from sd2rt.export.checkpoints.identify import (
    Evidence,
    by_architecture,
    by_hash,
    by_prediction,
    likeliest,
    narrow,
    stated,
)
from sd2rt.export.checkpoints.networks import check_weights, strays_note
from sd2rt.export.checkpoints.pipeline_configs import (
    CONFIG_FILES,
    MODEL_INDEX,
    Config,
    NetworkName,
    PipelineConfigs,
    check_classes,
    class_embedding,
    components,
    kind_of,
    read_json,
)
from sd2rt.export.checkpoints.refusals import refuse_foreign_folder, refuse_foreign_pipeline
from sd2rt.export.checkpoints.scheduler_config import read_scheduler
from sd2rt.export.checkpoints.source import OpenedCheckpoint, license_files, stated_license
from sd2rt.export.checkpoints.tokenizer_json import read_tokenizer_json
from sd2rt.export.checkpoints.variants import VARIANTS, PublishedCheckpoint
from sd2rt.export.checkpoints.weight_file import WeightFile, open_pickle, open_safetensors, sha256

WEIGHT_STEMS: dict[NetworkName, str] = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "depth_estimator": "model",
}

# transformers' name for pickles.
PICKLE_STEMS: dict[NetworkName, str] = {
    "text_encoder": "pytorch_model",
    "depth_estimator": "pytorch_model",
}

_SHARD = re.compile(r"-[0-9]{5}-of-[0-9]{5}\.")


class FolderParts:
    """Networks of a diffusers folder, read on demand."""

    def __init__(
        self, folder: Path, configs: PipelineConfigs, files: Mapping[NetworkName, list[WeightFile]]
    ) -> None:
        self._folder = folder
        self._configs = configs
        self._files = files

    def config(self, part: NetworkName) -> Config:
        return self._configs.part(part)

    def tensors(self, part: NetworkName) -> dict[str, torch.Tensor]:
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
    allow_pickle: bool = False,
    progress: Callable[[str], None] | None = None,
) -> OpenedCheckpoint:
    """Recognise a diffusers folder and check the names and shapes of all its weights.

    Weights and configuration do not distinguish SD-Turbo from 2.1-base. Only the Hub id, the folder's name,
    ``_name_or_path`` in model_index.json or ``variant`` does. Without any of these SD-Turbo is taken for a base
    model: it runs with its scheduler's sampler, but with a base model's default steps and guidance.

    Args:
        folder: the folder with model_index.json.
        name: Hub id, if the folder was downloaded by one.
        variant: the value of ``--variant``; it must agree with the folder.
        allow_pickle: read ``.bin`` files, of which only tensors are read, where there are no safetensors.
        progress: called with a message before each file is hashed, and with notes.

    Raises:
        CheckpointError: a file or value is missing, damaged or of another model.
    """
    refuse_foreign_folder(folder)
    model_index = read_json(folder / MODEL_INDEX)
    origin = name if name is not None else str(folder)
    # Identify another model's folder first, rather than report its parts as missing.
    unet, text_encoder = _config_or_empty(folder, "unet"), _config_or_empty(folder, "text_encoder")
    refuse_foreign_pipeline(origin, model_index, unet, text_encoder)
    check_classes(origin, model_index, unet)
    required = (*components(unet), "tokenizer")
    for component in required:
        if not os.path.isdir(folder / component):
            raise CheckpointError(
                f"{origin} lacks the folder {component}/: a checkpoint of this kind has {', '.join(required)}"
            )
    configs = PipelineConfigs.read(folder)
    inputs = kind_of(configs.unet)
    read_scheduler(configs.scheduler, origin, "base" if inputs is None else inputs.name)
    check_conditions(configs, origin)

    evidence = [
        *by_architecture(configs.unet.get("in_channels", 4), class_embedding(configs.unet)),
        *by_prediction(configs.scheduler.get("prediction_type", "epsilon"), "scheduler_config.json"),
        *_by_hub_id(name),
        *_by_name("its name", name or os.path.basename(os.path.realpath(folder)), "rename it"),
        *_by_name(
            "_name_or_path in model_index.json", str(model_index.get("_name_or_path")), "remove _name_or_path"
        ),
    ]
    stated_evidence = stated(variant)
    narrow(origin, [*evidence, *stated_evidence])
    files = {
        part: [open_weights(path, allow_pickle) for path in weight_paths(folder, part, allow_pickle)]
        for part in configs.parts
    }
    for part in configs.parts:
        shapes = {key: shape for file in files[part] for key, shape in file.shapes.items()}
        check_weights(part, configs.part(part), shapes, origin)
        if progress is not None and (note := strays_note(part, shapes)) is not None:
            progress(note)

    source = {
        file.path.relative_to(folder).as_posix(): sha256(file.path, progress)
        for part in configs.parts
        for file in files[part]
    }
    hash_evidence = [item for digest in source.values() for item in by_hash(digest)]
    rows = likeliest(narrow(origin, [*evidence, *hash_evidence, *stated_evidence]))
    # By now all rows are of one kind: the scheduler's prediction type distinguishes base from v.
    kind = rows[0].kind
    assert kind is not None
    texts = license_files(folder)
    releases = {row.release for row in rows}
    return OpenedCheckpoint(
        name=name if name is not None else os.path.basename(os.path.realpath(folder)),
        release=releases.pop() if len(releases) == 1 else None,
        kind=kind,
        configs=configs,
        source=source,
        license=stated_license(texts) or rows[0].license,
        parts=FolderParts(folder, configs, files),
        license_files=texts,
    )


def weight_paths(folder: Path, part: NetworkName, allow_pickle: bool = False) -> list[Path]:
    """Paths of a part's weight files in a pipeline's folder; see :func:`network_paths`."""
    return network_paths(folder / part, part, allow_pickle)


def network_paths(folder: Path, part: NetworkName, allow_pickle: bool = False) -> list[Path]:
    """Paths of a network's weight files in its folder, whole or sharded; full precision is preferred over fp16.

    Args:
        allow_pickle: take pickles if there are no safetensors.

    Raises:
        CheckpointError: the folder has none; the message names files that it has instead.
    """
    stem = WEIGHT_STEMS[part]
    if (paths := _find(folder, stem, ".safetensors")) is not None:
        return paths
    pickle_stem = PICKLE_STEMS.get(part, stem)
    pickles = _find(folder, pickle_stem, ".bin")
    if pickles is not None and allow_pickle:
        return pickles
    if pickles is not None:
        raise CheckpointError(
            f"{folder} has only pickled weights ({pickles[0].name}), a format that can contain code: load the "
            "folder with diffusers and save it again, which writes safetensors, or pass --allow-pickle to read their "
            "tensors alone, without running code"
        )
    others = sorted(file.name for suffix in (".safetensors", ".bin") for file in folder.glob(f"*{suffix}"))
    shards = [name for name in others if _SHARD.search(name)]
    if shards:
        raise CheckpointError(
            f"{folder} has the shard {shown(shards[0], 100)}, but not {stem}.safetensors.index.json, which lists all "
            "shards: copy it too"
        )
    if others:
        raise CheckpointError(
            f"{folder} has {shown(', '.join(others), 200)}, but neither {stem}.safetensors nor "
            f"{stem}.fp16.safetensors: rename the file that you want to build to one of these"
        )
    raise CheckpointError(
        f"{folder / stem}.safetensors is missing, as are an fp16 and a sharded one: copy it again"
    )


def _find(folder: Path, stem: str, suffix: str) -> list[Path] | None:
    for infix in ("", ".fp16"):
        whole = folder / f"{stem}{infix}{suffix}"
        if os.path.exists(whole):
            return [whole]
        # diffusers and transformers put the variant's name in different places.
        for index in (f"{stem}{suffix}.index{infix}.json", f"{stem}{infix}{suffix}.index.json"):
            if os.path.exists(folder / index):
                return _shards(folder / index)
    return None


def open_weights(path: Path, allow_pickle: bool) -> WeightFile:
    """Open a file of weights by its suffix.

    Raises:
        CheckpointError: it cannot be read, or is a pickle that is not allowed.
    """
    return (
        open_safetensors(path) if path.suffix == ".safetensors" else open_pickle(path, allowed=allow_pickle)
    )


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of file names: copy the file again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(
                f"{index} names the shard {name!r}, which is outside its folder: do not use this checkpoint"
            )
    return [index.parent / name for name in names]


def _by_hub_id(name: str | None) -> list[Evidence]:
    rows = tuple(row for row in VARIANTS if name in _hub_names(row))
    return [Evidence(f"its Hub id {name}", rows)] if rows else []


def _hub_names(row: PublishedCheckpoint) -> tuple[str, ...]:
    return (row.hub_id,) if row.mirror is None else (row.hub_id, row.mirror)


def _by_name(where: str, name: str, remedy: str) -> list[Evidence]:
    """Evidence from a name, for rows that only a name can identify."""
    tail = name.rsplit("/", 1)[-1]
    rows = tuple(row for row in VARIANTS if row.by_name_only and row.hub_id.rsplit("/", 1)[-1] == tail)
    return [Evidence(f"{where} {tail}", rows, remedy)] if rows else []


def _config_or_empty(folder: Path, part: NetworkName) -> Config:
    path = folder / CONFIG_FILES[part]
    return read_json(path) if os.path.exists(path) else {}
