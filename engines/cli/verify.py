"""`sd2rt verify`: check a bundle's files against its manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sd2rt.engines.bundle.manifest import Manifest, read_manifest
from sd2rt.engines.bundle.reader import Bundle, locate, open_bundle, verify_engines, verify_no_others
from sd2rt.engines.bundle.schema import File
from sd2rt.engines.cli.options import BundleArgument, JsonOption
from sd2rt.engines.console import progress_bar
from sd2rt.engines.errors import MissingDependencyError
from sd2rt.engines.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress


def verify(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Hash every file of a bundle and compare it with the manifest; also its prepared graphs."""
    path = locate(bundle)
    columns = ("{task.description}", "bar", "bytes", "bytes per second")
    with progress_bar(*columns, hidden=as_json, transient=True) as bar:
        read = _ignore if bar is None else _advance(bar, read_manifest(path))
        opened = open_bundle(path, trust_receipts=False, progress=read)
        verify_engines(opened, read)
        verify_no_others(opened)
        graphs = _verify_prepared(opened)
    files = (*opened.manifest.files, *opened.manifest.engine_files)
    size = sum(file.size for file in files)
    if as_json:
        facts: dict[str, Any] = {
            "path": str(opened.path),
            "identity": opened.manifest.identity,
            "bytes": size,
        }
        print(json.dumps({**facts, "files": len(files), "prepared": graphs, "ok": True}))
    else:
        prepared = f"; {graphs} prepared graphs are intact" if graphs else ""
        print(
            f"{printable(opened.path)}: {len(files)} files, {size / 1e6:.1f} MB, all match the manifest{prepared}"
        )


def _verify_prepared(bundle: Bundle) -> int:
    """Hash the graphs that `sd2rt prepare` has saved for this bundle and CPU, and return their number.

    Raises:
        BundleError: a file is missing or damaged.
    """
    from sd2rt.engines.onnxruntime.prepared import open_prepared

    try:
        graphs = [open_prepared(part, trust_receipts=False) for part in bundle.manifest.parts.values()]
    except MissingDependencyError:
        # Without ONNX Runtime nothing reads them.
        return 0
    return sum(graph is not None for graph in graphs)


def _advance(bar: Progress, manifest: Manifest) -> Callable[[File, int], None]:
    files = (*manifest.files, *manifest.engine_files)
    task = bar.add_task("", total=sum(file.size for file in files))
    return lambda file, count: bar.update(task, advance=count, description=printable(file.path))


def _ignore(file: File, count: int) -> None:
    return
