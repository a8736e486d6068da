"""Open checkpoints in the layout of the original releases: one file with all networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)

from sd2rt.engines.bundle.sampler_config import PredictionType
from sd2rt.engines.errors import CheckpointError
from sd2rt.engines.printable import shown
from sd2rt.engines.weights.shapes import linear_shape
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
from sd2rt.export.checkpoints.ldm.config_file import parameterization
from sd2rt.export.checkpoints.ldm.keys import EMA_PREFIX, ema_key, ldm_layout
from sd2rt.export.checkpoints.ldm.midas_keys import UNUSED as UNUSED_DEPTH
from sd2rt.export.checkpoints.ldm.tensor import PREFIXES, LdmTensor
from sd2rt.export.checkpoints.measured_prediction import correlation_with_noise, likely_prediction
from sd2rt.export.checkpoints.networks import assemble, skeleton, some_keys, stray_kind, strays_note
from sd2rt.export.checkpoints.pipeline_configs import Config, NetworkName, PipelineConfigs
from sd2rt.export.checkpoints.refusals import CROSS_ATTENTION, refuse_foreign_file, refuse_foreign_keys
from sd2rt.export.checkpoints.scheduler_config import read_scheduler
from sd2rt.export.checkpoints.source import OpenedCheckpoint, license_files, stated_license
from sd2rt.export.checkpoints.tokenizer_json import packaged_tokenizer_json
from sd2rt.export.checkpoints.variants import SUPPORTED, VARIANTS, PublishedCheckpoint
from sd2rt.export.checkpoints.weight_file import (
    PICKLE_SUFFIXES,
    WeightFile,
    check_readable,
    open_pickle,
    open_safetensors,
    sha256,
)

_SGM_TEXT_ENCODER = "conditioner.embedders.0.model."


class SingleFileParts:
    """Networks of a single file, converted on demand.

    ``stored_keys`` maps each key of the LDM layout to the key under which the file stores the tensor.
    """

    def __init__(self, file: WeightFile, stored_keys: Mapping[str, str], configs: PipelineConfigs) -> None:
        self._file = file
        self._stored_keys = stored_keys
        self._configs = configs

    def config(self, part: NetworkName) -> Config:
        return self._configs.part(part)

    def tensors(self, part: NetworkName) -> dict[str, torch.Tensor]:
        network = skeleton(part, self._configs.part(part))
        layout = ldm_layout(part, network.state_dict(), self._configs)
        read = self._file.tensors(self._stored_keys[tensor.key] for tensor in layout)
        state = {tensor.key: read[self._stored_keys[tensor.key]] for tensor in layout}
        if part == "unet":
            return dict(convert_ldm_unet_checkpoint(state, self._configs.unet))
        if part == "vae":
            return dict(convert_ldm_vae_checkpoint(state, self._configs.vae))
        if part == "depth_estimator":
            return _split(layout, state, network.state_dict())
        return dict(convert_open_clip_checkpoint(network, state, prefix=PREFIXES[part]))

    def tokenizer_json(self) -> str:
        return packaged_tokenizer_json()


def open_single_file(
    path: Path,
    *,
    variant: str | None = None,
    allow_pickle: bool = False,
    config: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> OpenedCheckpoint:
    """Recognise a single-file checkpoint and check the names and shapes of all its weights.

    The UNet's inputs identify depth, inpainting and upscaler. Names and shapes do not distinguish 2.0 from 2.1,
    epsilon from v, or SD-Turbo from these. A published SHA-256, the file's metadata, its published name, the original
    code's ``.yaml`` beside it, ``config`` or ``variant`` does; all that are present must agree. If none is, the error
    offers what the UNet's output is a sign of.

    Args:
        path: a ``.safetensors`` file or, with ``allow_pickle``, a ``.ckpt``.
        variant: the value of ``--variant``.
        allow_pickle: read a pickle of which only tensors are read.
        config: a folder of diffusers configuration files, for an architecture other than the published one.
        progress: called with a message before the file is hashed, and with notes.

    Raises:
        CheckpointError: the file is of another model or incomplete, or its variant is ambiguous.
    """
    check_readable(path)
    refuse_foreign_file(path)
    stated_evidence = stated(variant)
    file = _open(path, allow_pickle)
    custom_configs = PipelineConfigs.read(config) if config is not None else None
    if custom_configs is not None:
        read_scheduler(custom_configs.scheduler, str(config))
        check_conditions(custom_configs, str(config))
    keys = _stored_keys(file, custom_configs)
    shapes = {key: file.shapes[stored] for key, stored in keys.items()}
    refuse_foreign_keys(str(path), shapes)

    digest = sha256(path, progress) if path.stat().st_size in _published_sizes() else None
    evidence = [
        *by_architecture(_in_channels(path, shapes), _class_embedding(shapes)),
        *(by_hash(digest) if digest is not None else []),
    ]
    if len(evidence) == 1:
        # A hash is proof: a published file may have been renamed.
        evidence += [*_by_metadata(file.metadata), *_by_file_name(path), *_by_config_file(path, progress)]
    if custom_configs is not None:
        prediction = custom_configs.scheduler.get("prediction_type", "epsilon")
        evidence += by_prediction(prediction, f"{config}/scheduler/scheduler_config.json")
    possible = narrow(str(path), [*evidence, *stated_evidence])
    rows = likeliest(possible)
    if len({row.kind for row in rows}) > 1:
        names = ", ".join(row.name for row in possible)
        packaged = PipelineConfigs.packaged(str(rows[-1].configs))
        guess = _measured(SingleFileParts(file, keys, packaged), shapes, possible, str(path), progress)
        raise CheckpointError(
            f"{path} is a Stable Diffusion 2 checkpoint, but its variant cannot be told from its hash, metadata, "
            f"name, shapes or a .yaml beside it: pass --variant with one of {names}{guess}"
        )
    # Configurations of one kind differ between releases only in upcast_attention, which the later release needs.
    configs = (
        custom_configs if custom_configs is not None else PipelineConfigs.packaged(str(rows[-1].configs))
    )
    _check_prediction(file, configs, str(path))
    for part in configs.parts:
        _check_part(part, shapes, configs, str(path))
        beginning = PREFIXES[part]
        note = strays_note(part, (key.removeprefix(beginning) for key in shapes if key.startswith(beginning)))
        if progress is not None and note is not None:
            progress(note)

    releases = {row.release for row in rows}
    kind = rows[0].kind
    assert kind is not None
    texts = license_files(path.parent)
    return OpenedCheckpoint(
        name=path.name,
        release=releases.pop() if len(releases) == 1 else None,
        kind=kind,
        configs=configs,
        source={path.name: digest if digest is not None else sha256(path, progress)},
        license=stated_license(texts) or rows[0].license,
        parts=SingleFileParts(file, keys, configs),
        license_files=texts,
    )


def _open(path: Path, allow_pickle: bool) -> WeightFile:
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    if path.suffix in PICKLE_SUFFIXES:
        return open_pickle(path, allowed=allow_pickle)
    suffix = f"the suffix {path.suffix}" if path.suffix else "no suffix"
    raise CheckpointError(f"{path} has {suffix}, expected .safetensors or .ckpt: rename it if it is one")


def _split(
    layout: list[LdmTensor], state: Mapping[str, torch.Tensor], members: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Split stacked tensors into their members, by name."""
    parts: dict[str, torch.Tensor] = {}
    for tensor in layout:
        rows = [members[key].shape[0] for key in tensor.members]
        parts |= zip(tensor.members, torch.split(state[tensor.key], rows), strict=True)
    return parts


def _stored_keys(file: WeightFile, custom_configs: PipelineConfigs | None) -> dict[str, str]:
    """The file's key for each key of the layout; a file without UNet weights may have their moving averages."""
    stored = {_ldm_name(key, file.shapes): key for key in file.shapes if not key.startswith(EMA_PREFIX)}
    if any(key.startswith(PREFIXES["unet"]) for key in stored):
        return stored
    # The variant is not known yet: try the keys of each. Keys that variants share map to the same averages.
    by_layout = {row.class_embedding: str(row.configs) for row in SUPPORTED}
    candidates = (
        [custom_configs]
        if custom_configs is not None
        else [PipelineConfigs.packaged(n) for n in by_layout.values()]
    )
    for configs in candidates:
        unet = skeleton("unet", configs.unet).state_dict()
        averaged = {tensor.key: ema_key(tensor.key) for tensor in ldm_layout("unet", unet, configs)}
        stored |= {key: ema for key, ema in averaged.items() if ema in file.shapes}
    return stored


def _ldm_name(key: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Key in the original layout; newer training code (sgm) saves the text encoder under another name.

    SDXL's refiner uses that name too, with a wider text encoder, and so does SDXL for the first of its two.
    """
    if not key.startswith(_SGM_TEXT_ENCODER):
        return key
    width = next(iter(shapes.get(f"{_SGM_TEXT_ENCODER}ln_final.weight", ())), None)
    attends = next((shape[-1] for name, shape in shapes.items() if CROSS_ATTENTION.match(name)), None)
    if (
        width is None
        or width != attends
        or any(name.startswith("conditioner.embedders.1.") for name in shapes)
    ):
        return key
    return PREFIXES["text_encoder"] + key.removeprefix(_SGM_TEXT_ENCODER)


def _check_prediction(file: WeightFile, configs: PipelineConfigs, origin: str) -> None:
    """Refuse a file whose metadata and configuration disagree about the prediction type."""
    predicts = file.metadata.get("modelspec.prediction_type", "")
    expected = configs.scheduler.get("prediction_type", "epsilon")
    if _PREDICTIONS.get(predicts, expected) != expected:
        raise CheckpointError(
            f"{origin}: modelspec.prediction_type is {predicts}, but the scheduler's configuration has "
            f"{expected}: pass --config with a folder whose scheduler_config.json has the right prediction_type"
        )


def _check_part(
    part: NetworkName, shapes: Mapping[str, tuple[int, ...]], configs: PipelineConfigs, origin: str
) -> None:
    """Check the part's keys and shapes against the layout."""
    members = {
        key: tuple(tensor.shape) for key, tensor in skeleton(part, configs.part(part)).state_dict().items()
    }
    try:
        layout = ldm_layout(part, members, configs)
    except ValueError as error:
        raise CheckpointError(
            f"the configuration of {part} describes a network that has no single-file layout ({error}): use the "
            "published checkpoint's configuration files"
        ) from None
    expected = {}
    for tensor in layout:
        rows = sum(members[key][0] for key in tensor.members)
        expected[tensor.key] = (rows, *members[tensor.members[0]][1:])

    missing = sorted(expected.keys() - shapes.keys())
    if missing:
        raise CheckpointError(f"{origin} lacks {some_keys(missing)} of its {part}: use a complete checkpoint")
    present = {key for key in shapes if key.startswith(PREFIXES[part])}
    unexpected = sorted(key for key in present - expected.keys() if not _unused(part, key, configs))
    if unexpected:
        raise CheckpointError(
            f"{origin} has {some_keys(unexpected)}, which an SD2 {part} does not: it is of another model, or "
            "needs its own configuration files"
        )
    for key, shape in expected.items():
        # A linear layer may be stored as a 1x1 convolution.
        if linear_shape(shapes[key]) != linear_shape(shape):
            raise CheckpointError(
                f"{origin}: {key} has shape {list(shapes[key])}, expected {list(shape)}: it is of "
                "another model, or needs its own configuration files"
            )


def _unused(part: NetworkName, key: str, configs: PipelineConfigs) -> bool:
    """True for keys that SD2 files contain but never use, such as the text encoder's last layer."""
    if part == "depth_estimator":
        return UNUSED_DEPTH.fullmatch(key) is not None
    rest = key.removeprefix(PREFIXES[part])
    if part == "text_encoder" and rest.startswith(
        f"transformer.resblocks.{configs.text_encoder['num_hidden_layers']}."
    ):
        return True
    return stray_kind(part, rest) is not None


def _in_channels(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    key = PREFIXES["unet"] + "input_blocks.0.0.weight"
    if len(shapes.get(key, ())) != 4:
        raise CheckpointError(f"{path} lacks the key {key} of its unet: use a complete checkpoint")
    return shapes[key][1]


def _class_embedding(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    if PREFIXES["unet"] + "label_emb.weight" in shapes:
        return "table"
    return "projection" if PREFIXES["unet"] + "label_emb.0.0.weight" in shapes else None


def _by_config_file(path: Path, progress: Callable[[str], None] | None) -> list[Evidence]:
    try:
        stated = parameterization(path)
    except ValueError as error:
        if progress is not None:
            progress(f"{shown(str(error), 200)}: it is ignored")
        return []
    if stated is None:
        return []
    word, name = stated
    prediction = _PREDICTIONS.get("epsilon" if word == "eps" else word)
    rows = tuple(row for row in VARIANTS if prediction in row.predictions)
    return [Evidence(f"parameterization {shown(word)} in {name}", rows, f"correct {name}, or move it away")]


def _measured(
    parts: SingleFileParts,
    shapes: Mapping[str, tuple[int, ...]],
    possible: Sequence[PublishedCheckpoint],
    origin: str,
    progress: Callable[[str], None] | None,
) -> str:
    """Sentence about the variants that the UNet's output is a sign of; empty if it cannot be run."""
    config = parts.config("unet")
    try:
        _check_part("unet", shapes, PipelineConfigs.packaged(str(possible[-1].configs)), origin)
        if progress is not None:
            progress("running the UNet once, on noise, as the file does not state what it predicts")
        unet = assemble("unet", config, parts.tensors("unet"), torch.float32, origin)
    except (CheckpointError, MemoryError):
        # Weights that do not fit, or are damaged: the remedy is the same.
        return ""
    correlation = correlation_with_noise(cast(UNet2DConditionModel, unet))
    prediction = likely_prediction(correlation)
    likely = " or ".join(row.name for row in possible if prediction in row.predictions)
    label = "noise" if prediction == "epsilon" else "v"
    return (
        f". A guess, not used until you pass it: {likely}, because the UNet's output for pure noise correlates with "
        f"it by {correlation:.2f}, which is a sign of a model that predicts {label}"
    )


def _published_sizes() -> set[int]:
    return {size for row in VARIANTS for size in row.files.values()}


def _by_file_name(path: Path) -> list[Evidence]:
    rows = tuple(row for row in VARIANTS if path.stem in row.file_stems)
    return [Evidence(f"its name {path.name}", rows, "rename the file")] if rows else []


_PREDICTIONS: dict[str, PredictionType] = {
    "epsilon": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
}


def _by_metadata(metadata: Mapping[str, str]) -> list[Evidence]:
    """Evidence from entries of the Stability AI model metadata specification, if a tool has written them."""
    evidence = []
    architecture = metadata.get("modelspec.architecture", "")
    rows: tuple[PublishedCheckpoint, ...] = tuple(
        row for row in VARIANTS if architecture in row.architectures
    )
    if rows:
        evidence.append(Evidence(f"modelspec.architecture {architecture}", rows))
    prediction = metadata.get("modelspec.prediction_type", "")
    if prediction in _PREDICTIONS:
        rows = tuple(row for row in VARIANTS if _PREDICTIONS[prediction] in row.predictions)
        evidence.append(Evidence(f"modelspec.prediction_type {prediction}", rows))
    return evidence
