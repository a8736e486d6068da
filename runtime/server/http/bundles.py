"""Served bundles: their names and folders, and the settings of the workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sd2rt.engines.bundle.cache import find_bundle, named_bundle
from sd2rt.engines.bundle.manifest import MANIFEST
from sd2rt.engines.console import report
from sd2rt.engines.demo.files import DEMO_NAMES
from sd2rt.engines.errors import (
    BuildError,
    BundleError,
    EngineError,
    MissingDependencyError,
    RequestError,
    Sd2rtError,
)
from sd2rt.engines.printable import printable
from sd2rt.engines.termination import end_child
from sd2rt.runtime.server.http.config import ServerConfig
from sd2rt.runtime.server.logs import chosen_format
from sd2rt.runtime.server.worker_settings import WorkerSettings

_PREFIX = "sd2rt: "
_BY_CODE: dict[int, type[Sd2rtError]] = {
    each.exit_code: each for each in (RequestError, BundleError, EngineError, MissingDependencyError)
}


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
        max_side=config.max_side,
        max_steps=config.max_steps,
        threads=config.threads,
        max_batch=config.max_batch,
        allow_cpu_fallback=config.allow_cpu_fallback,
        tile=config.tile,
        backend=config.backend,
        precision=config.precision,
        metadata=not config.no_metadata,
        watermark=config.watermark,
        c2pa_cert=config.c2pa_cert,
        c2pa_key=config.c2pa_key,
        safety=config.safety,
        log_level=config.log_level.upper(),
        log_format=chosen_format(config.log_format),
    )


def _folders(bundles: tuple[str, ...]) -> dict[str, str]:
    """Return the folder of each bundle by the name that requests use: the last part of its path.

    Demos that are not in the cache are built.
    """
    folders: dict[str, str] = {}
    demos = []
    for bundle in bundles:
        folder = Path(os.path.abspath(find_bundle(bundle)))
        if not os.path.isfile(folder / MANIFEST):
            if bundle not in DEMO_NAMES or folder != Path(os.path.abspath(named_bundle(bundle))):
                raise BundleError(f"there is no bundle {printable(bundle)}: build it with 'sd2rt build'")
            demos.append(bundle)
        if folder.name in folders:
            raise RequestError(
                f"two bundles are named {printable(folder.name)}: rename one, since requests choose by name"
            )
        folders[folder.name] = str(folder)
    if demos:
        _build_demos(demos)
    return folders


def _build_demos(names: list[str]) -> None:
    """Build in a child process: NumPy would stay in this one.

    Raises:
        Sd2rtError: the build failed; with the message and the exit code of the child's error.
    """
    report(f"building {', '.join(names)}, once")
    # Without -P the working directory would come before the installed packages.
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "sd2rt", "build", *names],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _, lines = child.communicate()
    except KeyboardInterrupt:
        end_child(child, grace_seconds=None)
        raise
    if child.returncode:
        line = lines.decode(errors="replace").strip().rpartition("\n")[2]
        raise _BY_CODE.get(child.returncode, BuildError)(line.removeprefix(_PREFIX))
