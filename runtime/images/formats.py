"""File formats of images, by name and by suffix."""

from __future__ import annotations

from typing import Literal

FileFormat = Literal["png", "jpeg", "webp"]

SUFFIXES: dict[str, FileFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""Formats by the suffixes of their files, in small letters; the first of a format is written."""


def suffix_of(file_format: FileFormat) -> str:
    """Suffix of a new file of a format."""
    return next(suffix for suffix, name in SUFFIXES.items() if name == file_format)
