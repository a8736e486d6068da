"""LoRAs and embeddings that a file records, compared with those that are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from sd2rt.engines.printable import shown

if TYPE_CHECKING:
    from sd2rt.engines.lora.file import Lora


class LoraReference(BaseModel):
    """A LoRA as recorded in a file."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    name: str
    scale: float | None = None
    text_scale: float | None = None
    """Scale of the text encoder's changes; None for ``scale``."""
    sha256: str = ""
    """Leading digits of its file's hash; empty if unknown."""

    @property
    def scale_of_text(self) -> float | None:
        """Scale of the text encoder's changes."""
        return self.scale if self.text_scale is None else self.text_scale

    @property
    def scales(self) -> str | None:
        """Scales as in ``--lora FILE:SCALES``; None if they are unknown."""
        if self.scale is None:
            return None
        text = "" if self.scale_of_text == self.scale else f":{self.scale_of_text:g}"
        return f"{self.scale:g}{text}"


def embedding_note(token: str, sha256: str, loaded: Mapping[str, str]) -> str | None:
    """Return a note if an embedding is not loaded, or another file."""
    if token not in loaded:
        label = f"{shown(token)} ({shown(sha256)})" if sha256 else shown(token)
        return f"the embedding {label} is not loaded: add its file with --embedding"
    if not loaded[token].startswith(sha256):
        return f"the embedding {shown(token)} is a different file from the one used originally"
    return None


def lora_note(recorded: LoraReference, loaded: Sequence[Lora]) -> str | None:
    """Return a note if a LoRA is not loaded, another file, or of another scale."""
    name, scales = shown(recorded.name), recorded.scales
    suffix = "" if scales is None else f":{scales}"
    matches = [
        lora
        for lora in loaded
        if lora.sha256.startswith(recorded.sha256) and (recorded.sha256 or lora.name == recorded.name)
    ]
    if not matches:
        if any(lora.name == recorded.name for lora in loaded):
            return f"the LoRA {name} is a different file from the one used originally"
        label = f"{name} ({shown(recorded.sha256)})" if recorded.sha256 else name
        return f"the LoRA {label} is not loaded: add its file with --lora FILE{suffix}"
    if scales is not None and all(
        (lora.scale, lora.text_scale) != (recorded.scale, recorded.scale_of_text) for lora in matches
    ):
        return f"the LoRA {name} has scale {matches[0].scales}, but {scales} was used originally"
    return None
