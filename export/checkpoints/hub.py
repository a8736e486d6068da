"""Fetch checkpoints by Hugging Face Hub id, from the local cache or the network."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors, snapshot_download

from sd2rt.engines.errors import CheckpointError
from sd2rt.engines.printable import shown
from sd2rt.export.checkpoints.diffusers_folder import PICKLE_STEMS, WEIGHT_STEMS, weight_paths
from sd2rt.export.checkpoints.identify import not_supported
from sd2rt.export.checkpoints.pipeline_configs import (
    CONFIG_FILES,
    FEATURE_EXTRACTOR_FILE,
    components,
    read_json,
)
from sd2rt.export.checkpoints.source import LICENSE_PATTERNS
from sd2rt.export.checkpoints.variants import VARIANTS

_LOG = logging.getLogger(__name__)

_CONFIG_FILES = (
    "model_index.json",
    "tokenizer/*",
    FEATURE_EXTRACTOR_FILE,
    *CONFIG_FILES.values(),
    *LICENSE_PATTERNS,
)
# Full precision before fp16, and never both: 5 GB and 2.6 GB.
_INFIXES = ("", ".fp16")
_ENDINGS = (".safetensors", "-*.safetensors", ".safetensors.index*.json")
_PICKLE_ENDINGS = (".bin", "-*.bin", ".bin.index*.json")


def _weight_files(allow_pickle: bool) -> Iterator[list[str]]:
    """Patterns of the weight files, one list for each choice among those that a repository can have."""
    for stems, endings in ((WEIGHT_STEMS, _ENDINGS), (WEIGHT_STEMS | PICKLE_STEMS, _PICKLE_ENDINGS)):
        if endings is _ENDINGS or allow_pickle:
            for infix in _INFIXES:
                yield [f"{part}/{stem}{infix}{ending}" for part, stem in stems.items() for ending in endings]


def fetch(repo_id: str, progress: Callable[[str], None] | None = None, allow_pickle: bool = False) -> Path:
    """Path of a Hub repository's folder: from the cache if complete there, else downloaded into the cache.

    Only the files that a build reads are downloaded; pickled weights only if allowed and if there are no others.

    Raises:
        CheckpointError: the repository was removed (the message names its mirror), is missing or gated, or the
            network is unreachable or disallowed.
    """
    row = next((row for row in VARIANTS if repo_id in (row.hub_id, row.mirror)), None)
    if row is not None and not row.supported:
        raise CheckpointError(f"{repo_id} is {not_supported([row], 'by its Hub id')}")
    cached = _cached(repo_id, allow_pickle)
    if cached is not None:
        _LOG.info("%s is in the local Hugging Face cache: %s", repo_id, cached)
        return cached
    if row is not None and row.mirror not in (None, repo_id):
        raise CheckpointError(
            f"{repo_id} is not in the local Hugging Face cache, and Stability AI removed it from the Hub in "
            f"November 2025: use its mirror {row.mirror}"
        )
    if huggingface_hub.is_offline_mode():
        raise CheckpointError(
            f"{repo_id} is missing or incomplete in the local Hugging Face cache, and HF_HUB_OFFLINE forbids "
            "downloads: unset it, or give a folder or file"
        )
    if progress is not None:
        progress(f"downloading {repo_id} from the Hugging Face Hub")
    folder, start = None, time.monotonic()
    for weights in _weight_files(allow_pickle):
        folder = _download(repo_id, [*_CONFIG_FILES, *weights])
        if is_complete(folder, allow_pickle):
            _LOG.info("downloaded %s in %.1f s", repo_id, time.monotonic() - start)
            return folder
    if not allow_pickle:
        _refuse_pickles_alone(repo_id)
    # open_folder() reports which files are missing.
    assert folder is not None
    return folder


def _refuse_pickles_alone(repo_id: str) -> None:
    """Raise CheckpointError if a repository has pickled weights of the UNet."""
    names: list[str] = []
    # Without the list, the missing files are reported.
    with contextlib.suppress(Exception):
        names = huggingface_hub.HfApi().list_repo_files(repo_id)
    unet = [name for name in names if name.startswith("unet/")]
    pickles = [name for name in unet if name.endswith(".bin")]
    if pickles and not any(name.endswith(".safetensors") for name in unet):
        raise CheckpointError(
            f"{repo_id} has only pickled weights ({shown(pickles[0])}), a format that can contain code: use another "
            "repository, or pass --allow-pickle to read their tensors alone, without running code"
        )


def is_complete(folder: Path, allow_pickle: bool = False) -> bool:
    """True if a folder has model_index.json and the files of every component that its UNet needs."""
    try:
        required = components(read_json(folder / CONFIG_FILES["unet"]))
        paths = [
            path
            for part in WEIGHT_STEMS
            if part in required
            for path in weight_paths(folder, part, allow_pickle)
        ]
    except CheckpointError:
        return False
    files = (folder / "model_index.json", *(folder / CONFIG_FILES[name] for name in required), *paths)
    return all(os.path.exists(path) for path in files)


def _cached(repo_id: str, allow_pickle: bool) -> Path | None:
    for weights in _weight_files(allow_pickle):
        try:
            folder = snapshot_download(
                repo_id, local_files_only=True, allow_patterns=[*_CONFIG_FILES, *weights]
            )
        except (errors.LocalEntryNotFoundError, errors.HFValidationError):
            continue
        if is_complete(Path(folder), allow_pickle):
            return Path(folder)
    return None


def _download(repo_id: str, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns))
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{repo_id} is gated on the Hugging Face Hub: accept its terms on its page and log in with 'hf "
            "auth login'"
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"{repo_id} is not on the Hugging Face Hub (or is private), and there is no such path: check the "
            "spelling, or log in with 'hf auth login'"
        ) from None
    except errors.LocalEntryNotFoundError:
        raise CheckpointError(
            f"{repo_id} is neither a path nor in the local Hugging Face cache, and the Hub cannot be "
            "reached: check the network, or give a folder or file"
        ) from None
    except Exception as error:
        # huggingface_hub also raises errors of its HTTP client and of the file system.
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise CheckpointError(f"{repo_id} could not be downloaded ({reason}): try again") from None
