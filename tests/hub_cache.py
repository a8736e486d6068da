"""A folder as huggingface_hub keeps a repository in its cache."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cache_snapshot(cache: Path, repo_id: str, source: Path) -> Path:
    """Lay a folder out as huggingface_hub caches a repository: blobs, and links to them."""
    repo = cache / f"models--{repo_id.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "blobs").mkdir()
    for file in (path for path in source.rglob("*") if path.is_file()):
        blob = repo / "blobs" / hashlib.sha256(str(file).encode()).hexdigest()
        blob.write_bytes(file.read_bytes())
        link = repo / "snapshots" / COMMIT / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return repo / "snapshots" / COMMIT
