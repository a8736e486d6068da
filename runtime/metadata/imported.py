"""Settings of another program as request fields, with notes on those that cannot be honoured."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from sd2rt.engines.bundle.sizes import check_sides
from sd2rt.engines.errors import RequestError
from sd2rt.engines.printable import shown
from sd2rt.runtime.request.request import Request
from sd2rt.runtime.request.second_pass import SecondPass


class ImportedSettings:
    """Request fields translated from another program's settings.

    Attributes:
        program: name of that program.
        fields: request fields.
        notes: one line for each setting that is not supported.
        from_image: True for image-to-image; the text does not contain the image.
        masked: True if a mask was used, which the text does not contain either.
        model: name of the model, or None.
        model_hash: leading digits of the SHA-256 of the model file, or None.
        embeddings: names of the textual inversions in the prompts.
        loras: names and scales of the LoRAs. The scale is None if it cannot be read.
        text_scales: scales of the text encoder's changes, by LoRA, where they differ.
        second_pass: the pass over the enlarged picture that followed, or None.
    """

    def __init__(self, program: str) -> None:
        self.program = program
        self.fields: dict[str, Any] = {}
        self.notes: list[str] = []
        self.from_image = False
        self.masked = False
        self.model: str | None = None
        self.model_hash: str | None = None
        self.embeddings: list[str] = []
        self.loras: list[tuple[str, float | None]] = []
        self.text_scales: dict[str, float] = {}
        self.second_pass: SecondPass | None = None

    def note_ignored(self, name: str, value: object) -> None:
        """Note that a setting is not supported, unless it is None."""
        if value is not None:
            self.notes.append(f"{shown(f'{name}: {value}')} is not supported and is ignored")

    def add_number(self, label: str, name: str, value: object, parse: Callable[[Any], Any]) -> None:
        """Set a field to a number, which may be a string; note a value that the field does not accept.

        Args:
            label: the program's name of the setting.
            name: request field.
            value: the value; None if the setting is missing.
            parse: ``int`` or ``float``.
        """
        if value is None:
            return
        try:
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                raise ValueError
            number = parse(value)
            if not math.isfinite(number) or (isinstance(value, float) and number != value):
                raise ValueError
            Request.model_validate({"prompt": "", name: number})
        except (ValueError, OverflowError):
            self.notes.append(f"{label} {shown(str(value))} is not a valid value and is ignored")
        else:
            self.fields[name] = number

    def add_size(self, label: str, width: object, height: object) -> None:
        """Set width and height, or note that they are not supported; None if they are missing."""
        if width is None and height is None:
            return
        try:
            sides = {"width": int(str(width)), "height": int(str(height))}
            check_sides(**sides)
        except (RequestError, ValueError) as error:
            reason = str(error) if isinstance(error, RequestError) else "it is not a size"
            self.notes.append(
                f"{label} {shown(f'{width}x{height}')} is not supported ({reason}): the bundle's default is used"
            )
        else:
            self.fields |= sides


def file_stem(name: object) -> str | None:
    """Name of a model in another program's folders, without folders and suffix; None for what is not a name."""
    if not isinstance(name, str) or not name.strip():
        return None
    path = PurePosixPath(name.replace("\\", "/"))
    return path.stem if path.suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin") else path.name
