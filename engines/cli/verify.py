"""`sd2rt verify`: compare a bundle's files with its manifest."""

from __future__ import annotations

import json
import sys
from typing import Any

from sd2rt.engines.bundle.manifest import Manifest, read_manifest
from sd2rt.engines.bundle.reader import Bundle, locate, open_bundle, verify_engines
from sd2rt.engines.bundle.schema import File
from sd2rt.engines.cli.options import BundleArgument, JsonOption


def verify(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Read every file of a bundle and compare its hash with the manifest's."""
    path = locate(bundle)
    if as_json or not sys.stderr.isatty():
        opened = open_bundle(path, trust_receipts=False)
        verify_engines(opened)
    else:
        opened = _with_progress(str(path), read_manifest(path))
    files = (*opened.manifest.files, *opened.manifest.engine_files)
    size = sum(file.size for file in files)
    if as_json:
        facts: dict[str, Any] = {
            "path": str(opened.path),
            "identity": opened.manifest.identity,
            "bytes": size,
        }
        print(json.dumps({**facts, "files": len(files), "ok": True}))
    else:
        print(f"{opened.path}: {len(files)} files, {size / 1e6:.1f} MB, all as the manifest says")


def _with_progress(path: str, manifest: Manifest) -> Bundle:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        files = (*manifest.files, *manifest.engine_files)
        task = bar.add_task("", total=sum(file.size for file in files))

        def read(file: File, count: int) -> None:
            bar.update(task, advance=count, description=file.path)

        opened = open_bundle(path, trust_receipts=False, progress=read)
        verify_engines(opened, read)
        return opened
