"""Another autoencoder than the checkpoint's own, from a diffusers folder or a single file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sd2rt.engines.bundle.manifest import OTHER_VAE
from sd2rt.engines.errors import CheckpointError
from sd2rt.engines.printable import repr_of, shown
from sd2rt.export.checkpoints.checkpoint import Checkpoint
from sd2rt.export.checkpoints.diffusers_folder import network_paths, open_weights
from sd2rt.export.checkpoints.ldm.keys import vae_name
from sd2rt.export.checkpoints.ldm.tensor import PREFIXES
from sd2rt.export.checkpoints.networks import check_weights, current_name, skeleton, strays_note
from sd2rt.export.checkpoints.pipeline_configs import CONFIG_FILES, Config, NetworkName, read_json
from sd2rt.export.checkpoints.source import NetworkSource
from sd2rt.export.checkpoints.weight_file import PICKLE_SUFFIXES, WeightFile, sha256

_CLASS = "AutoencoderKL"
_FREE = ("sample_size", "force_upcast")
"""Keys of a configuration that do not change what the network computes."""


def with_vae(
    checkpoint: Checkpoint,
    path: Path,
    *,
    allow_pickle: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Checkpoint:
    """The checkpoint with the autoencoder at ``path`` instead of its own.

    Its hash replaces those of the checkpoint's own files, so that its bundle has another build key.

    Args:
        path: a diffusers folder of the autoencoder or of a pipeline, or a single file with names of LDM or diffusers;
            a whole checkpoint in one file serves too.
        allow_pickle: read pickles, of which only tensors are read.
        progress: called with a message before a file is hashed, and with notes.

    Raises:
        CheckpointError: it cannot be read, or does not fit the checkpoint by the shapes of its weights, or by its
            configuration if it has one.
    """
    config = checkpoint.parts.config("vae")
    files = _of_folder(path, config, allow_pickle) if os.path.isdir(path) else [_of_file(path, allow_pickle)]
    names = _names(config, files)
    shapes = {name: file.shapes[key] for name, (file, key) in names.items()}
    check_weights("vae", config, shapes, str(path))
    if progress is not None and (note := strays_note("vae", shapes)) is not None:
        progress(note)
    folder = f"{os.path.basename(os.path.realpath(path))}/" if os.path.isdir(path) else ""
    kept = {name: digest for name, digest in checkpoint.source.items() if not name.startswith("vae/")}
    hashes = {f"{OTHER_VAE}{folder}{file.path.name}": sha256(file.path, progress) for file in files}
    return replace(checkpoint, source=kept | hashes, parts=_OtherVae(checkpoint.parts, names))


@dataclass(frozen=True, slots=True)
class _OtherVae:
    """Networks of a checkpoint, with another autoencoder."""

    original: NetworkSource
    names: Mapping[str, tuple[WeightFile, str]]
    """File and key of each of its weights, by diffusers' name."""

    def config(self, part: NetworkName) -> Config:
        return self.original.config(part)

    def tokenizer_json(self) -> str:
        return self.original.tokenizer_json()

    def tensors(self, part: NetworkName) -> dict[str, torch.Tensor]:
        if part != "vae":
            return self.original.tensors(part)
        tensors: dict[str, torch.Tensor] = {}
        for file in {id(file): file for file, _ in self.names.values()}.values():
            keys = {key: name for name, (other, key) in self.names.items() if other is file}
            tensors |= {keys[key]: tensor for key, tensor in file.tensors(keys).items()}
        return tensors


def _of_folder(path: Path, config: Config, allow_pickle: bool) -> list[WeightFile]:
    folder = path / "vae" if os.path.isdir(path / "vae") else path
    own = read_json(folder / os.path.basename(CONFIG_FILES["vae"]))
    kind = own.get("_class_name", _CLASS)
    if kind != _CLASS:
        raise CheckpointError(f"{path} is an autoencoder of class {shown(repr_of(kind))}, expected {_CLASS}")
    expected, found = _completed(config), _completed(own)
    for name in sorted(expected.keys() | found.keys()):
        if name.startswith("_") or name in _FREE or _value(expected, name) == _value(found, name):
            continue
        raise CheckpointError(
            f"{path}: {name} is {shown(repr_of(found.get(name)))}, the checkpoint's own VAE has "
            f"{shown(repr_of(expected.get(name)))}: it belongs to another model"
        )
    return [open_weights(file, allow_pickle) for file in network_paths(folder, "vae", allow_pickle)]


def _completed(config: Config) -> dict[str, object]:
    """The configuration with the defaults of keys that it does not have."""
    network: Any = skeleton("vae", config)
    return dict(network.config)


def _value(config: Mapping[str, object], name: str) -> object:
    value = config.get(name)
    return list(value) if isinstance(value, tuple) else value


def _of_file(path: Path, allow_pickle: bool) -> WeightFile:
    if os.path.isfile(path) and path.suffix not in (".safetensors", *PICKLE_SUFFIXES):
        raise CheckpointError(
            f"{path} is not a .safetensors, .ckpt, .pt, .pth or .bin: rename it if it is one"
        )
    return open_weights(path, allow_pickle)


def _names(config: Config, files: list[WeightFile]) -> dict[str, tuple[WeightFile, str]]:
    """File and key by diffusers' name; keys that are not of an autoencoder keep theirs."""
    levels = len(config["block_out_channels"])
    of_ldm = {vae_name(name, levels): name for name in skeleton("vae", config).state_dict()}
    names: dict[str, tuple[WeightFile, str]] = {}
    for file in files:
        within = any(key.startswith(PREFIXES["vae"]) for key in file.shapes)
        for key in file.shapes:
            if within and not key.startswith(PREFIXES["vae"]):
                continue
            bare = key.removeprefix(PREFIXES["vae"])
            names[of_ldm.get(bare, current_name("vae", bare))] = file, key
    return names
