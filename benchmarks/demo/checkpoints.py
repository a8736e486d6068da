"""The demo's checkpoints, and the sets that score them."""

from __future__ import annotations

CHECKPOINTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "base": ("demo", ("text", "negative")),
    "v": ("demo-v", ("text", "negative")),
    "inpainting": ("demo-inpaint", ("inpainting",)),
    "depth": ("demo-depth", ("depth",)),
    "upscaler": ("demo-x4", ("upscaler",)),
}
"""By kind: the name of the bundle and checkpoint folder, and the sets it is scored on."""
