"""Identities of rows: hashes of all that their images depend on, and seeds of rows without one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.rows.row import PATHS, Row
from sd2rt.runtime.rows.series import RANDOM, Series

if TYPE_CHECKING:
    from sd2rt.engines.bundle.manifest import Manifest
    from sd2rt.engines.lora.file import Lora
    from sd2rt.runtime.metadata.save import ImageTarget
    from sd2rt.runtime.prompts.textual_inversion import Embedding
    from sd2rt.runtime.provenance.stamps import Stamps

_SEED_DIGITS = 8
"""Of a hash, in hexadecimal: 32 bits, as many as random seeds have."""


def row_settings(
    fields: Mapping[str, Any],
    count: int,
    manifest: Manifest,
    *,
    loras: Sequence[Lora],
    embeddings: Sequence[Embedding],
    tile: int,
    precision: str | None,
    target: ImageTarget,
    stamps: Stamps,
    safety: str | None,
) -> dict[str, Any]:
    """Return what the images of all rows depend on, as JSON values.

    Args:
        fields: fields of rows without their own.
        count: images of rows without a number of their own.
        safety: name of the safety check: images that no check has seen are drawn again.
    """
    return {
        "fields": fields,
        "count": count,
        "bundle": manifest.identity,
        "loras": [(lora.sha256, *dict.fromkeys((lora.scale, lora.text_scale))) for lora in loras],
        "embeddings": sorted((embedding.token, embedding.sha256) for embedding in embeddings),
        "tile": tile,
        "precision": precision,
        "format": [target.file_format, target.quality, stamps.metadata],
        **_marks(stamps),
        **({} if safety is None else {"safety": safety}),
    }


def _marks(stamps: Stamps) -> dict[str, Any]:
    """Return the marks that rows' hashes cover: nothing by default, as in folders of versions without marks."""
    signer = None if stamps.signer is None else hashlib.sha256(stamps.signer.certificates).hexdigest()
    return {} if stamps.watermark == "none" and signer is None else {"marks": [stamps.watermark, signer]}


class RowHashes:
    """Hashes of rows, by all that their images depend on.

    Args:
        settings: the command's options, and the identities of the bundle and its LoRAs, as JSON values.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._seen: dict[str, int] = {}

    def of(self, row: Row, seed: int | None) -> str:
        """Hash the next row. Equal rows are numbered, and have different hashes.

        Args:
            seed: seed of its first image; None if it is random.
        """
        text = self._text(row, seed)
        number = self._seen[text] = self._seen.get(text, 0) + 1
        return hashlib.sha256(f"{text}\n{number}".encode()).hexdigest()

    def named(self, row: Row, seed: int | None, name: str) -> str:
        """Hash a row and its name, wherever it stands: rows of equal content and name have equal hashes."""
        return hashlib.sha256(f"{self._text(row, seed)}\n{json.dumps(name)}".encode()).hexdigest()

    def _text(self, row: Row, seed: int | None) -> str:
        content = {
            "settings": self._settings,
            "prompt": row.prompt,
            "fields": row.fields,
            "count": row.count,
            "seed": seed,
            "files": [_state(row.fields[name]) for name in PATHS if name in row.fields],
        }
        return json.dumps(content, sort_keys=True, default=repr)


def _state(path: str) -> list[int]:
    """Size and time of a file, which change with its content."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return []
    return [status.st_size, status.st_mtime_ns]


def derived_seed(key: str) -> int:
    """Return the seed of a row without one, by its hash: the same whenever and wherever it is drawn."""
    return int(key[:_SEED_DIGITS], 16)


@dataclass(frozen=True, slots=True)
class IdentifiedRow:
    """A row with its hash, and with the seed of its first image."""

    key: str
    row: Row


def identified(
    rows: Iterable[Row | RequestError], series: Series, hashes: RowHashes, random: bool
) -> Iterator[IdentifiedRow | RequestError]:
    """Yield each row with its hash and seed, so that it can be drawn without those before it; or the error in it.

    Hashes are those of :class:`~sd2rt.runtime.rows.drawing.BatchRun`, and seeds too, but for random ones: these are
    derived from the hashes.

    Args:
        random: rows without a seed get such a one.
    """
    for row in rows:
        if isinstance(row, RequestError):
            yield row
            continue
        fixed = row.seed != RANDOM and (row.seed is not None or not random)
        seed = series.seed_of(row) if fixed else None
        key = hashes.of(row, seed)
        # As there, rows that are wrong take no seeds from those after them.
        if not random:
            series.requests(row)
        yield IdentifiedRow(key, replace(row, seed=derived_seed(key) if seed is None else seed))
