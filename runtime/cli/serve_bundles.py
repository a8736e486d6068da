"""Bundles of `sd2rt serve`: their names and folders, and the settings of the workers."""

from __future__ import annotations

import os
from pathlib import Path

from sd2rt.engines.bundle.cache import find_bundle
from sd2rt.engines.bundle.manifest import MANIFEST
from sd2rt.engines.errors import BundleError, RequestError
from sd2rt.engines.printable import printable
from sd2rt.runtime.server.http.config import ServerConfig
from sd2rt.runtime.server.worker_settings import WorkerSettings


def worker_settings(config: ServerConfig) -> WorkerSettings:
    """Return the workers' settings.

    Raises:
        RequestError: two bundles have one name.
        BundleError: a bundle is missing.
    """
    return WorkerSettings(
        bundles=_folders(config.bundle),
        devices=config.device,
        keep=config.keep,
        loras=config.lora,
        embeddings=config.embedding,
        lora_sets=config.lora_sets,
        max_images=config.max_queue,
        max_image_pixels=config.max_image_pixels,
        max_steps=config.max_steps,
        threads=config.threads,
        max_batch=config.max_batch,
        allow_cpu_fallback=config.allow_cpu_fallback,
        tile=config.tile,
        backend=config.backend,
        precision=config.precision,
        metadata=not config.no_metadata,
        log_level=config.log_level.upper(),
    )


def _folders(bundles: tuple[str, ...]) -> dict[str, str]:
    """Return the folder of each bundle by the name that requests use: the last part of its path."""
    folders: dict[str, str] = {}
    for bundle in bundles:
        folder = Path(os.path.abspath(find_bundle(bundle)))
        if not os.path.isfile(folder / MANIFEST):
            raise BundleError(f"there is no bundle {printable(bundle)}: build it with 'sd2rt build'")
        if folder.name in folders:
            raise RequestError(
                f"two bundles are named {printable(folder.name)}: rename one, since requests choose by name"
            )
        folders[folder.name] = str(folder)
    return folders
