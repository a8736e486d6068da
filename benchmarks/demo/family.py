"""The checkpoints of the demo."""

from __future__ import annotations

CHECKPOINTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "base": ("demo", ("text", "negative")),
    "v": ("demo-v", ("text", "negative")),
    "inpainting": ("demo-inpaint", ("inpainting",)),
    "depth": ("demo-depth", ("depth",)),
    "upscaler": ("demo-x4", ("upscaler",)),
}
"""By kind, the name of its bundle and its checkpoint's folder, and the sets that it is scored on."""
