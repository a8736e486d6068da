"""Format the command that builds a missing engine, for error messages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sd2rt.engines.bundle.engine_entry import EngineBackend
from sd2rt.engines.bundle.model_kinds import UNTILED, PartName
from sd2rt.engines.bundle.sizes import TILE


def build_command(
    bundle: Path, backend: EngineBackend, part: PartName, dims: Mapping[str, int], pixels: int
) -> str:
    """Format the command that builds an engine of a part for these sizes.

    Args:
        dims: sizes of the part's symbols; omitted ones take the defaults of ``sd2rt build``.
        pixels: image pixels per latent row or column.
    """
    words = [f"sd2rt build {bundle} --engines-only --backend {backend}"]
    if part in UNTILED:
        # Tiled parts are built only for images larger than a tile.
        sides = [dims.get(symbol, TILE) for symbol in ("w", "h")]
        width, height = (side * pixels + (64 if side >= TILE else 0) for side in sides)
        words.append(f"--size {width}x{height}")
    elif "h" in dims and "w" in dims:
        words.append(f"--size {dims['w'] * pixels}x{dims['h'] * pixels}")
    if dims.get("B", 1) > 1:
        words.append(f"--batch {dims['B']}")
    if dims.get("P", 1) > 1:
        words.append(f"--prompts {dims['P']}")
    if dims.get("L", 77) > 77:
        words.append(f"--prompt-chunks {-(-dims['L'] // 77)}")
    return " ".join(words)
