"""`sd2rt list`: the bundles in the cache, and those elsewhere that it remembers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sd2rt.engines.bundle.cache import cached_bundles, named_bundle, remembered_places
from sd2rt.engines.bundle.manifest import Manifest, read_manifest
from sd2rt.engines.bundle.shared_files import shared_bytes
from sd2rt.engines.cli.options import JsonOption
from sd2rt.engines.console import add_row, print_line, table_console
from sd2rt.engines.errors import BundleError


def list_bundles(as_json: JsonOption = False) -> None:
    """List the bundles: those in the cache by name, and others that were built or used by path."""
    rows = [_facts(name, named_bundle(name)) for name in cached_bundles()]
    cached = {os.path.realpath(row["path"]) for row in rows}
    rows += [_facts(str(path), path) for path in remembered_places() if os.path.realpath(path) not in cached]
    if as_json:
        print(json.dumps(rows))
        return
    if not rows:
        print_line("no bundles: 'sd2rt build demo' builds the demo, 'sd2rt build CHECKPOINT' a checkpoint")
        return
    from rich.table import Table

    names = ("bundle", "kind", "precision", "size", "defaults", "MB", "shared MB", "built from")
    table = Table(*names, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        if "error" in row:
            add_row(table, row["name"], "damaged", "", "", "", "", "", "")
            continue
        sizes = (f"{row[name] / 1e6:.1f}" for name in ("bytes", "shared_bytes"))
        defaults = f"{row['steps']} steps, guidance {row['guidance']:g}"
        loras = "".join(f" + {name}" for name in row["merged_loras"])
        add_row(
            table,
            row["name"],
            row["kind"],
            row["precision"],
            row["size"],
            defaults,
            *sizes,
            row["source"] + loras,
        )
    table_console(140).print(table)


def _facts(name: str, path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": name, "path": str(path)}
    try:
        manifest: Manifest = read_manifest(path)
    except BundleError as error:
        return {**facts, "error": str(error)}
    defaults = next(iter(manifest.tasks.values()))
    width, height = manifest.native_sizes[0]
    return {
        **facts,
        "kind": manifest.variant,
        "precision": manifest.precision,
        "size": f"{width}x{height}",
        "tasks": list(manifest.supported),
        "steps": defaults.num_inference_steps,
        "guidance": defaults.guidance_scale,
        "bytes": sum(file.size for file in (*manifest.files, *manifest.engine_files)),
        "shared_bytes": shared_bytes(path, manifest.files),
        "source": manifest.source.name,
        "merged_loras": list(manifest.merged_loras),
        "engines": sorted({f"{entry.backend} {entry.version}" for entry in manifest.engines}),
        "identity": manifest.identity,
    }
