"""The model card of a bundle on the Hub: README.md, with the licence and the kind of the checkpoint."""

from __future__ import annotations

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.model_kinds import TASKS, TaskName
from sd2rt.engines.hub.repository import Repository

CARD = "README.md"
WRITTEN_BY_PUSH = "<!-- written by sd2rt push, which replaces it; without this line it is kept -->"

LICENSES = {
    "openrail++": "CreativeML Open RAIL++-M",
    "creativeml-openrail-m": "CreativeML OpenRAIL-M",
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
}
"""Names of licences by their ids on the Hub; for others a card has ``other`` and the name."""


def model_card(manifest: Manifest, repository: Repository) -> str:
    """Text of the card: YAML for the Hub's pages, then facts and the commands that use the bundle."""
    tasks = [name for name in TASKS if name in manifest.tasks]
    sizes = ", ".join(f"{width}x{height}" for width, height in manifest.native_sizes)
    size = sum(file.size for file in (*manifest.files, *manifest.engine_files)) / 1e6
    licence = manifest.license
    files = [f"[{file.path}]({file.path})" for file in manifest.license_files]
    rows = {
        "kind": manifest.variant,
        "tasks": ", ".join(tasks),
        "release": manifest.source.release or "2.x",
        "precision": manifest.precision,
        "sizes": sizes,
        "built from": manifest.source.name,
        "merged LoRAs": ", ".join(manifest.merged_loras) or "none",
        "engines": ", ".join(sorted({f"{entry.backend} {entry.version}" for entry in manifest.engines}))
        or "none",
        "identity": f"`{manifest.identity}`",
        "megabytes": f"{size:.1f}",
        "licence": ", ".join([licence, *files]),
    }
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    return f"""---
{_front_matter(manifest, tasks)}
---
{WRITTEN_BY_PUSH}

# {repository.name}

A bundle of Stable Diffusion 2 for sd2rt: ONNX graphs with their weights, which run without PyTorch.

| | |
| --- | --- |
{table}

```sh
sd2rt pull {repository}
sd2rt run {repository} "a lighthouse at dusk"
```

The licence is that of the checkpoint: it holds for the bundle too, and for pictures as far as it says so.
"""


def _front_matter(manifest: Manifest, tasks: list[TaskName]) -> str:
    # The Hub has no task of its own for masks, depth or enlarging.
    tag = "text-to-image" if "text-to-image" in tasks else "image-to-image"
    known = next((id for id, name in LICENSES.items() if name == manifest.license), None)
    lines = (
        ["license: other", f"license_name: {_slug(manifest.license)}"]
        if known is None
        else [f"license: {known}"]
    )
    if known is None and manifest.license_files:
        lines.append(f"license_link: {manifest.license_files[0].path}")
    lines += ["library_name: sd2rt", f"pipeline_tag: {tag}", "tags:"]
    lines += [
        f"- {tag}" for tag in ("sd2rt", "onnx", "stable-diffusion", f"stable-diffusion-2-{manifest.variant}")
    ]
    return "\n".join(lines)


def _slug(name: str) -> str:
    words = "".join(
        letter if letter.isalnum() and letter.isascii() else " " for letter in name.lower()
    ).split()
    return "-".join(words) or "unknown"


def _cell(text: str) -> str:
    """Text of a cell: one line, without what would end the cell or begin HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
