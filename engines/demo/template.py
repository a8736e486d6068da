"""Templates of the demo's manifests: everything about a demo bundle that takes PyTorch to find out."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field, ValidationError

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.schema import File, Model, Precision, RelativePath, Sha256
from sd2rt.engines.demo.files import read_packaged, template_path
from sd2rt.engines.errors import CheckpointError

FROM_BUILD = ("name", "build_key", "sd2rt_version")
"""Entries of a manifest that a build fills in, besides sizes and hashes of files; ``native_sizes`` is a default."""


class PartSources(Model):
    """Packaged files that a part is made from."""

    graphs: str
    """Archive of its graphs."""
    weights: tuple[str, ...]
    """Files of its weights; of a weight in several, the last counts. Empty if it uses those of another part."""


class Template(Model):
    """Facts of one demo's bundle in one precision."""

    key_facts: dict[str, Any]
    """Facts of the build key, see :func:`sd2rt.engines.bundle.writer.build_key`."""
    needed_bytes: int = Field(ge=0)
    """Estimated size of the bundle."""
    packaged: dict[RelativePath, Sha256]
    """SHA-256 of each packaged file that the bundle is made from, by its path in ``engines/demo/``."""
    parts: dict[PartName, PartSources]
    manifest: dict[str, Any]
    """Entries of the manifest, with paths in place of files."""

    def to_json(self) -> str:
        """Serialise, one line for each entry."""
        data = self.model_dump(mode="json")
        lines = (f"{json.dumps(key)}: {json.dumps(value, sort_keys=True)}" for key, value in data.items())
        return "{\n" + ",\n".join(lines) + "\n}\n"


def read_template(name: str, precision: Precision) -> Template:
    """Read the packaged template of a demo.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = template_path(name, precision)
    try:
        return Template.model_validate_json(read_packaged(path))
    except ValidationError:
        raise CheckpointError(
            f"the demo is damaged, {path} is not a template of a manifest: reinstall sd2rt, or name a checkpoint"
        ) from None


def without_files(value: Any) -> Any:
    """Replace each file in the JSON value of a manifest by its path."""
    if isinstance(value, dict):
        if value.keys() == File.model_fields.keys():
            return value["path"]
        return {key: without_files(item) for key, item in value.items()}
    return [without_files(item) for item in value] if isinstance(value, list) else value
